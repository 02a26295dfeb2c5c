"""`joey completion`: scripts for bash, zsh and fish, made from the tables of options."""

from joey.bench import COMMANDS as BENCHES
from joey.cli import VERBS, load
from joey.cli.fn import VERBS as FN_VERBS
from joey.cli.image import VERBS as IMAGE_VERBS
from joey.cli.options import UsageError, listed
from joey.cli.output import write

SHELLS = ("bash", "zsh", "fish")
WORDS = {
    "image": tuple(IMAGE_VERBS),
    "fn": tuple(FN_VERBS),
    "network": ("create", "ls", "inspect", "rm"),
    "volume": ("create", "ls", "inspect", "rm", "prune"),
    "pool": ("create", "ls", "inspect", "rm"),
    "keys": ("create", "ls", "revoke"),
    "system": ("info", "df", "reset"),
    "bench": BENCHES,
    "completion": SHELLS,
}


_FUNCTIONS = "joey fn ls -q 2>/dev/null"


def completion(values, arguments):
    """Print the script."""
    shell = arguments[0]
    if shell not in SHELLS:
        raise UsageError(f"no completion for {shell!r}", f"one of {', '.join(SHELLS)}")
    write(1, {"bash": bash, "zsh": zsh, "fish": fish}[shell]().encode())


def takes_sandbox(command):
    """Whether its arguments are sandboxes."""
    return "SANDBOX" in command["usage"]


def _names(command, value):
    return [name for option in listed(command) if bool(option[1]) == value for name in option[0].split()]


def bash():
    """For bash: `source <(joey completion bash)`."""
    cases = []
    for verb in VERBS:
        command = load(verb)
        words = " ".join((*_names(command, False), *_names(command, True), *WORDS.get(verb, ())))
        valued = "|".join(_names(command, True)) or "--"
        dynamic = "1" if takes_sandbox(command) else ""
        cases.append(f"    {verb}) words='{words}'; valued='@({valued})'; dynamic='{dynamic}' ;;")
    return f"""# bash completion of joey: source <(joey completion bash)
_joey() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words valued dynamic
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '{" ".join(VERBS)}' -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
    *) return ;;
  esac
  shopt -q extglob || {{ shopt -s extglob; local off=1; }}
  # shellcheck disable=SC2053
  if [[ $before == $valued ]]; then
    COMPREPLY=($(compgen -f -- "$word"))
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  elif [[ $dynamic ]]; then
    COMPREPLY=($(compgen -W "$(joey ps -a --format '{{{{.Names}}}}' 2>/dev/null)" -- "$word"))
  elif [[ ${{COMP_WORDS[1]}} == fn ]] && ((COMP_CWORD > 2)); then
    COMPREPLY=($(compgen -W "$({_FUNCTIONS})" -- "$word") $(compgen -f -- "$word"))
  else
    COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))
  fi
  [[ -z ${{off-}} ]] || shopt -u extglob
}}
complete -F _joey joey
"""


def zsh():
    """For zsh: `source <(joey completion zsh)`."""
    lines = ["#compdef joey", "_joey() {", "  local -a verbs", "  verbs=("]
    lines += [f"    {_quoted(f'{verb}:{summary}')}" for verb, (_, summary) in VERBS.items()]
    lines += ["  )", "  if ((CURRENT == 2)); then _describe command verbs; return; fi", "  case $words[2] in"]
    for verb in VERBS:
        command = load(verb)
        specs = []
        for option in listed(command):
            text = option[2].replace("[", "(").replace("]", ")").replace(":", " ")
            for name in option[0].split():
                value = ":value:_files" if option[1] else ""
                specs.append(_quoted(f"{'*' if option[1].endswith('…') else ''}{name}[{text}]{value}"))
        rest = (
            "'*:sandbox:($(joey ps -a --format {{.Names}} 2>/dev/null))'" if takes_sandbox(command) else "'*::_files'"
        )
        if verb in WORDS:
            rest = f"'*:word:({' '.join(WORDS[verb])})'"
        if verb == "fn":
            rest = f"'1:verb:({' '.join(WORDS[verb])})' '*:function:($({_FUNCTIONS}))'"
        lines.append(f"    {verb}) shift words; ((CURRENT--)); _arguments {' '.join(specs)} {rest} ;;")
    return "\n".join((*lines, "  esac", "}", "compdef _joey joey", ""))


def fish():
    """For fish: `joey completion fish | source`."""
    lines = ["complete -c joey -f"]
    for verb, (_, summary) in VERBS.items():
        lines.append(f"complete -c joey -n __fish_use_subcommand -a {verb} -d {_quoted(summary)}")
    for verb in VERBS:
        command = load(verb)
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        for option in listed(command):
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option[0].split())
            value = " -r -F" if option[1] else ""
            lines.append(f"complete -c joey {seen} {names}{value} -d {_quoted(option[2])}")
        if takes_sandbox(command):
            lines.append(f"complete -c joey {seen} -a '(joey ps -a --format \"{{{{.Names}}}}\" 2>/dev/null)'")
        if verb == "fn":
            lines.append(f"complete -c joey {seen} -a '({_FUNCTIONS})'")
        for word in WORDS.get(verb, ()):
            lines.append(f"complete -c joey {seen} -a {word}")
    return "\n".join((*lines, ""))


def _quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


COMMANDS = {
    "completion": {
        "usage": "bash|zsh|fish",
        "summary": "Print completions for a shell",
        "text": "bash: source <(joey completion bash). fish: joey completion fish | source.",
        "arguments": (1, 1),
        "options": (),
        "run": completion,
    }
}
