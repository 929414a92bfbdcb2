"""The log port on Apache Kafka: the only package that speaks to a broker, by kafka-python.

In: settings. Out: `streams.kafka.log.KafkaLog`, the port that the embedded log has too; members of consumer groups;
topics. What is in the records is their writers' business. It starts no broker.
"""
