"""Pilots of many nodes: who is the agent, who is in, and what a node offers."""
