"""Defines `recipe export`, which writes a trained adapter in other forms."""

from pathlib import Path

import click


@click.command()
@click.argument("version", required=False)
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["merged", "gguf", "ollama", "bundle", "vllm"]),
    help="The form to write.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]),
    help="Precision of the weights. The default is float32 for merged, bfloat16 for vllm, else q8_0.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write. The default is exports/FORM-DTYPE.")
@click.option(
    "--tolerance", type=click.FloatRange(0, min_open=True),
    help="Accept this mean divergence (nats) from the adapter, instead of the usual limits.",
)  # fmt: skip
def export(version: str | None, form: str, dtype: str | None, out: Path | None, tolerance: float | None) -> None:
    """Export the trained adapter, and prove that the export is the trained model.

    Without VERSION, exports the adapter in this recipe folder. VERSION is a registered one, such as
    models:/recipe-demo@champion.

    \b
    merged  a folder in transformers' layout, in which the adapter is part of the base
            model's weights: float32 or bfloat16
    gguf    a file for llama.cpp, LM Studio and similar programs: q8_0, float32, bfloat16;
            q6_k, q5_k_m and q4_k_m need the program llama-quantize
    ollama  a GGUF file and a Modelfile with the template and the end tokens of the training
    bundle  a tar file with all that a registered version needs on a machine without network
    vllm    a folder with the base model and the adapter, unchanged, for `make services-serve`

    Before an export is kept, it is compared with the adapter on 32 validation rows: the token ids of the prompts, the
    logits, and the greedy answers. GGUF files are compared in llama.cpp. If they differ by more than the limits, the
    exit code is 5 and nothing is kept. The comparison is in reports/export/index.html and in the MLflow run.

    \b
        recipe export --to merged
        recipe export --to merged --dtype bfloat16 --out ~/models/my-model
        recipe export models:/recipe-demo@champion --to bundle
    """
    from recipe.model.processor import pin_processor

    pin_processor()
    from recipe.cli.export import export_model

    export_model(version, form, dtype, out, tolerance, click.echo)


@click.command()
@click.argument("version", required=False)
@click.option(
    "--engine", default="llama.cpp", show_default=True,
    type=click.Choice(["llama.cpp", "transformers", "vllm", "mlflow"]), help="Program that runs the model.",
)  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on. Others need an API key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@click.option("--api-key", envvar="RECIPE_API_KEY", help="Key that requests must have. [env: RECIPE_API_KEY]")
@click.option("--dtype", help="Precision of the export. The default is q8_0 for llama.cpp, float32 for transformers.")
@click.option(
    "--parallel", default=0, type=click.IntRange(0),
    help="Requests that llama.cpp (default: 4) or vLLM answers at once.",
)  # fmt: skip
@click.option(
    "--context", "tokens", default=0, type=click.IntRange(0),
    help="Largest number of tokens of a request and its answer, for llama.cpp and vLLM. The default is what the model "
    "supports.",
)  # fmt: skip
def serve(
    version: str | None, engine: str, host: str, port: int, api_key: str | None, dtype: str | None, parallel: int,
    tokens: int,
) -> None:  # fmt: skip
    """Serve the trained adapter, or a registered VERSION, over OpenAI's API.

    The adapter is exported first, if it was not yet (see `recipe export`). Before the port opens, the server answers a
    prompt. If the answer is not the adapter's, for example because the adapter is ignored, the exit code is 5.

    Requests without a temperature are answered with greedy decoding, as in the evaluation. SIGTERM and Ctrl-C finish
    the open requests.

    \b
        recipe serve
        recipe serve models:/recipe-demo@champion --engine transformers
        recipe serve models:/recipe-demo@champion --engine mlflow
        RECIPE_API_KEY=secret recipe serve --host 0.0.0.0
    """
    from recipe.model.processor import pin_processor

    pin_processor()
    from recipe.cli.serve import serve
    from recipe.serve.run import Options

    serve(version, Options(engine, host, port, api_key, parallel, tokens), dtype, click.echo)


@click.command()
@click.argument("name", metavar="OWNER/NAME")
@click.argument("version", required=False)
@click.option(
    "--form", default="adapter", show_default=True, type=click.Choice(["adapter", "merged"]),
    help="The adapter alone, or merged into its base model.",
)  # fmt: skip
@click.option("--gguf", "with_gguf", is_flag=True, help="Also publish a GGUF file in q8_0.")
@click.option("--private", is_flag=True, help="Create a private repository.")
@click.option("--license-confirmed", is_flag=True, help="You may publish the model, whatever the licenses are.")
@click.option("--publish", "for_real", is_flag=True, help="Upload. Without it, the files and the card are only shown.")
def push(
    name: str, version: str | None, form: str, with_gguf: bool, private: bool, license_confirmed: bool, for_real: bool
) -> None:  # fmt: skip
    """Publish a registered VERSION on the Hub. The default is the champion.

    Shows the files and the model card; --publish uploads them as one commit. A version from a repository with changes
    that are not committed is refused, as are licenses that may not allow it, and files that contain a secret. The
    token with write access is in HF_TOKEN. An upload that was interrupted is continued by the same command.

    \b
        recipe push my-name/my-model
        recipe push my-name/my-model models:/recipe-demo/3 --form merged --gguf --publish
    """
    from recipe.model.processor import pin_processor

    pin_processor()
    from recipe.cli.push import push

    push(
        name, version, form, with_gguf=with_gguf, private=private, license_confirmed=license_confirmed,
        for_real=for_real, say=click.echo,
    )  # fmt: skip


COMMANDS = [export, serve, push]
