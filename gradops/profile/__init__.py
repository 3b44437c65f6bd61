"""`python -m gradops profile`: where a mixed-precision training step goes, with torch's own recipe and with gradops."""
