"""Threads, event loops, deadlines and cancellation: the only place where one meets another."""
