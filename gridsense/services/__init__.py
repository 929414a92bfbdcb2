"""The long-running services, put together from their parts: the processor, the gateway, and both in one process.

In: a configuration and a way to be told to stop. Out: events, a log, signs of life. They decode and score nothing.
"""
