"""Measuring models: bits per byte, multiple choice, sample answers, and the page that shows it all."""
