"""What finished commands left behind, and what it lets one conclude."""
