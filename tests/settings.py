"""Settings for collectors of tests, each as `section__key="value"`."""

from pathlib import Path


def sandboxed(folder: Path, upstream_url: str) -> dict[str, str]:
    """A queue in the folder, and the way to a sandbox."""
    return {
        "queue__path": str(folder / "queue"),
        "upstream__base_url": upstream_url,
        "upstream__token_url": f"{upstream_url}/oauth2/token",
        "upstream__client_id": "sandbox",
        "upstream__client_secret": "sandbox",
    }


def variables(settings: dict[str, str]) -> dict[str, str]:
    """The same as the environment has them."""
    return {f"COLLECTOR_{name}".upper(): value for name, value in settings.items()}
