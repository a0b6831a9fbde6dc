#compdef mustang
# mustang's completion for zsh: the command itself says what may come next.
_mustang() {
  local current=${words[CURRENT]}
  local -a line=("${(@)words[1,CURRENT-1]}") found
  if [[ $current == -* ]]; then line+=("$current"); fi
  found=("${(@f)$(env 0=zsh "${line[@]}" --generate-bash-completion 2>/dev/null)}")
  if [[ -n ${found[1]} ]]; then _describe mustang found; else _files; fi
}
if [[ $funcstack[1] == _mustang ]]; then _mustang "$@"; else compdef _mustang mustang; fi
