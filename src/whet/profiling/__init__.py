"""What a run spent its time on."""
