"""Chatting with a model: streamed answers, a key-value cache kept between turns, a terminal and a web page."""
