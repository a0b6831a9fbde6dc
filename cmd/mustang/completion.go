// SPDX-License-Identifier: Apache-2.0

package main

import (
	_ "embed"
	"fmt"

	"github.com/urfave/cli/v2"
)

// completionFlag is what shells ask with, as the last argument.
const completionFlag = "--generate-bash-completion"

//go:embed completion.bash
var bashCompletion string

//go:embed completion.zsh
var zshCompletion string

func completionCommand(e env) *cli.Command {
	return verb{
		name: "completion", usage: "print a shell's completion of this command line", args: "bash|zsh|fish", min: 1, max: 1,
		about: "For one shell: source <(mustang completion bash). The package brings all three.",
		run: func(c *cli.Context) error {
			text, err := "", error(nil)
			switch shell := c.Args().First(); shell {
			case "bash":
				text = bashCompletion
			case "zsh":
				text = zshCompletion
			case "fish":
				text, err = newApp(e).ToFishCompletion() // of one that has run, with its commands of help, cli makes no end
			default:
				return usagef(c, "completion: unknown shell %q: choose among bash, zsh, fish", shell)
			}
			if err == nil {
				_, err = fmt.Fprint(e.stdout, text)
			}
			return err
		},
	}.command()
}
