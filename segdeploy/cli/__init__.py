"""The command line: one file for each command in `commands/`. Results go to stdout, all else to stderr."""

import io
import logging
import sys
import warnings
from typing import NoReturn

import click

from segdeploy import extras
from segdeploy._version import __version__
from segdeploy.cli import commands, exit_codes
from segdeploy.errors import InvalidRequestError, SegdeployError


def main() -> NoReturn:
    """Run the command line; every failure ends in two lines and its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold any bytes
    logging.basicConfig(format="%(message)s")
    logging.getLogger("segdeploy").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a damaged EXIF block is no news to whoever wants a mask
    try:
        with extras.named_where_missing():
            sys.exit(cli.main(standalone_mode=False) or 0)
    except SegdeployError as error:
        _fail(error.what, error.remedy, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "segdeploy"
        _fail(error.format_message(), f"See {command} --help", InvalidRequestError.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), "See segdeploy --help", InvalidRequestError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted; what was finished is kept.", err=True)
        sys.exit(exit_codes.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        sys.exit(exit_codes.DEFECT)
    except OSError as error:
        what = f"{error.filename or 'the system'}: {error.strerror or error}."
        _fail(what, "Check path, permissions and space.", exit_codes.ENVIRONMENT)


def _fail(what: str, remedy: str, code: int) -> NoReturn:
    click.echo(f"Error: {' '.join(what.split())}\n{' '.join(remedy.split())}", err=True)
    sys.exit(code)


class _Commands(click.Group):
    """Imports the file of a command when that command is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [command.name for command in commands.listed()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        return commands.load(cmd_name).COMMAND if cmd_name in commands.names() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(command.name, command.summary) for command in commands.listed()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="segdeploy")
def cli() -> None:
    """Semantic segmentation, deployed: train, export exactly, prove it, time it, run it over a folder.

    \b
      segdeploy train --model unet --data DIR     train on a folder of images/ and masks/
      segdeploy export --model segnet             write export/segnet.fp32.onnx and prove it
      segdeploy export --model segnet --precision int8
                                                  the same in int8, inside an accuracy budget
      segdeploy parity --model segnet --data DIR  compare PyTorch, graph and engine by pixels
      segdeploy build --model unet --engine trt:fp16
                                                  compile a plan for an NVIDIA GPU, signed
      segdeploy bench --engine fp32               time it, with percentiles
      segdeploy report unet.json                  one page that says which engine to ship
      segdeploy infer ./images                    masks for a folder of photographs
    """  # noqa: D301 - a raw string would not hold click's mark
