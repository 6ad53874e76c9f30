"""What is said of studies: compared, checked, followed along training."""
