"""Steps of parameters that several processes share."""
