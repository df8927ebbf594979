"""Snapshots of training state: laid out, written by all ranks, committed by a manifest, read back."""
