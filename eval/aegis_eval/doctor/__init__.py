"""What a machine or files lack, and the mend."""
