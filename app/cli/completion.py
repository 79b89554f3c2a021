"""`completion`: what a shell has to know to complete `python -m app`, read from the parser itself.

Each script is written once and sourced: pressing a key starts no Python, which would take longer
than the typing.
"""

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import get_args

from app.cli.arguments import Commands
from app.settings.combined import Settings
from app.settings.variables import variables
from app.training.preemption import StopRequest

_SHELLS = ("bash", "zsh", "fish")
_BASH = """\
# Completes `python -m app`. Made by `python -m app completion bash`; to be sourced.
_smollm2_is_command() { case "$1" in %(commands)s) return 0 ;; esac; return 1; }
_smollm2_words() { REPLY=; case "$1" in
%(words)s
esac; }
_smollm2_flags() { REPLY=%(shared)s; case "$1" in
%(flags)s
esac; }
_smollm2_values() { REPLY=; case "$1" in
%(values)s
esac; }
_smollm2() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= i REPLY
  COMPREPLY=()
  [[ $COMP_CWORD -gt 2 && ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == app ]] || return 0
  if [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
  if [[ $cur == "=" ]]; then cur=; fi
  for ((i = 3; i < COMP_CWORD; i++)); do
    if _smollm2_is_command "$path${path:+ }${COMP_WORDS[i]}"; then
      path="$path${path:+ }${COMP_WORDS[i]}"
    fi
  done
  _smollm2_values "$prev"
  if [[ -z $REPLY && $cur == -* ]]; then _smollm2_flags "$path"
  elif [[ -z $REPLY ]]; then _smollm2_words "$path"
  elif [[ $REPLY == FILE ]]; then return 0
  fi
  COMPREPLY=($(compgen -W "$REPLY" -- "$cur"))
}
complete -o default -F _smollm2 python python3
"""
_ZSH = """\
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""
_FISH = """\
# Completes `python -m app`. Made by `python -m app completion fish`; to be sourced.
function __smollm2_at
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test "$words[2] $words[3]" = "-m app"; or return 1
    set -l path ""
    for word in $words[4..-1]
        set -l longer (string trim -- "$path $word")
        contains -- $longer %(commands)s; and set path $longer
    end
    test "$argv[1]" = any; or test "$path" = "$argv[1]"
end
%(lines)s
complete -c python3 -w python
"""


@dataclass(frozen=True)
class _Flag:
    """`values` are those it may have, where they are few; `takes_value` says whether it has one."""

    name: str
    text: str
    takes_value: bool
    values: tuple[str, ...]


@dataclass(frozen=True)
class _Command:
    """The words `path`, which may be followed by one of `words`. `text` says what it does."""

    path: str
    text: str
    words: tuple[str, ...]
    flags: tuple[_Flag, ...]


def add_commands(commands: Commands, parser: argparse.ArgumentParser) -> None:
    """`parser` is the whole of the command line. It is read when the command runs."""
    command = commands.add(
        "completion", partial(completion, parser), "print what makes a shell complete commands"
    )
    command.add_argument("shell", choices=_SHELLS)


def completion(
    parser: argparse.ArgumentParser,
    _settings: Settings,
    arguments: argparse.Namespace,
    _stop: StopRequest,
) -> None:
    found = list(_commands(parser, "", ""))
    if arguments.shell == "fish":
        print(_fish(found), end="")
    else:
        print((_ZSH if arguments.shell == "zsh" else "") + _bash(found), end="")


def _commands(parser: argparse.ArgumentParser, path: str, text: str) -> Iterator[_Command]:
    """The parser's own and all below it."""
    below: dict[str, argparse.ArgumentParser] = {}
    texts: dict[str, str] = {}
    flags = []
    for action in parser._actions:  # argparse tells nobody else what it has
        if isinstance(action, argparse._SubParsersAction):
            below = dict(action.choices)
            texts = {entry.dest: entry.help or "" for entry in action._choices_actions}
            continue
        values = tuple(map(str, action.choices or ()))
        for name in (name for name in action.option_strings if name.startswith("--")):
            known = values or _values_of_variables().get(name, ())
            shown = (action.help or "").replace("%%", "%")
            flags.append(_Flag(name, shown, action.nargs != 0, known))
        if not action.option_strings and values:
            below |= dict.fromkeys(values, argparse.ArgumentParser(add_help=False))
    yield _Command(path, text, tuple(below), tuple(flags))
    for name, sub in below.items():
        yield from _commands(sub, f"{path} {name}".strip(), texts.get(name, ""))


def _values_of_variables() -> dict[str, tuple[str, ...]]:
    """By flag, of those that have a few values only."""
    found = {}
    for variable in variables():
        kind = variable.info.annotation
        values = tuple(value for value in get_args(kind) if isinstance(value, str))
        found[variable.flag] = ("true", "false") if kind is bool else values
    return found


def _shared(found: list[_Command]) -> list[_Flag]:
    """Flags of every command that takes settings."""
    names = {variable.flag for variable in variables()}
    return list({f.name: f for command in found for f in command.flags if f.name in names}.values())


def _bash(found: list[_Command]) -> str:
    shared = _shared(found)
    names = {flag.name for flag in shared}
    flags = {flag.name: flag for command in found for flag in command.flags}
    own = {c.path: " ".join(f.name for f in c.flags if f.name not in names) for c in found}
    return _BASH % {
        "commands": "|".join(f'"{command.path}"' for command in found if command.path),
        "words": "\n".join(
            f'  "{c.path}") REPLY={shlex.quote(" ".join(c.words))} ;;' for c in found if c.words
        ),
        "shared": shlex.quote(" ".join(flag.name for flag in shared)),
        "flags": "\n".join(
            f'  "{path}") REPLY="$REPLY {words}" ;;' for path, words in own.items() if words
        ),
        "values": "\n".join(
            f"  {flag.name}) REPLY={shlex.quote(' '.join(flag.values) or 'FILE')} ;;"
            for flag in flags.values()
            if flag.takes_value
        ),
    }


def _fish(found: list[_Command]) -> str:
    shared = _shared(found)
    names = {flag.name for flag in shared}
    texts = {command.path: command.text for command in found}
    lines = [_fish_flag("any", flag) for flag in shared]
    for command in found:
        at = f"-n '__smollm2_at \"{command.path}\"'"
        for word in command.words:
            text = _quoted(texts[f"{command.path} {word}".strip()])
            lines.append(f"complete -c python {at} -f -a {word} -d {text}")
        lines += [_fish_flag(command.path, f) for f in command.flags if f.name not in names]
    commands = " ".join(f'"{command.path}"' for command in found if command.path)
    return _FISH % {"commands": commands, "lines": "\n".join(lines)}


def _fish_flag(path: str, flag: _Flag) -> str:
    values = f" -x -a {shlex.quote(' '.join(flag.values))}" if flag.values else ""
    needs = " -r" if flag.takes_value and not flag.values else values
    return (
        f"complete -c python -n '__smollm2_at \"{path}\"' -l {flag.name[2:]}{needs} "
        f"-d {_quoted(flag.text)}"
    )


def _quoted(text: str) -> str:
    """For fish, in which a backslash protects a quote within quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
