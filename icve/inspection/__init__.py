"""What training sees of a manifest, by the code that training selects and reads with."""
