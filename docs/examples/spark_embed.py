"""Embed a file of texts, one a line, with Spark.

    pip install '.[spark]'
    spark-submit docs/examples/spark_embed.py MODEL texts.txt vectors

The folder `vectors` then has Parquet files with the columns `text`, `vector`, `error`.
"""

import sys

from pyspark.ml.functions import predict_batch_udf
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType, StringType, StructField, StructType

from bertrt.spark import make_predict_fn


def main(model: str, texts: str, out: str) -> None:
    spark = SparkSession.builder.getOrCreate()
    embed = predict_batch_udf(
        make_predict_fn(model, ["vector", "error"], on_error="return"),
        return_type=StructType(
            [StructField("vector", ArrayType(FloatType())), StructField("error", StringType())]
        ),
        batch_size=1024,
    )
    frame = spark.read.text(texts).withColumnRenamed("value", "text")
    answered = frame.withColumn("answer", embed("text")).select("text", "answer.*")
    answered.write.parquet(out)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
