"""A C37.118 client of many PMUs and concentrators at once.

In: TCP connections and UDP datagrams. Out: to a log, every whole frame untouched and in order, each configuration in
its place, and what could not be used with its reason. It decodes no data and judges none.
"""
