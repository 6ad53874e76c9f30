"""Other libraries' names over casestudy's engine."""
