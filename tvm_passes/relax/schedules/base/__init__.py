"""What schedule rules of every class of devices share."""
