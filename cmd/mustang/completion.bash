# mustang's completion for bash: the command itself says what may come next.
_mustang() {
  local current=${COMP_WORDS[COMP_CWORD]} line=("${COMP_WORDS[@]:0:COMP_CWORD}")
  if [[ $current == -* ]]; then line+=("$current"); fi
  mapfile -t COMPREPLY < <(compgen -W "$("${line[@]}" --generate-bash-completion 2>/dev/null)" -- "$current")
}
complete -o default -F _mustang mustang
