"""`python -m gradops profile`: where a mixed-precision training step goes, natively and with gradops."""
