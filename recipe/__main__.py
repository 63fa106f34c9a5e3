"""`python -m recipe STAGE`: what dvc.yaml runs, so that the code that runs is the code in the recipe folder."""

from recipe.cli.commands import main

main()
