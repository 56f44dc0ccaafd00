"""What the doctor looks at: a sample of the data, one concept a file."""
