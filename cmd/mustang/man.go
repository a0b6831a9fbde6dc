// SPDX-License-Identifier: Apache-2.0

//go:build !urfave_cli_no_docs

package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"
)

// manCommands print the man page, for those who make packages. The program that is installed goes without: what turns the page into
// roff would be set up at every start, of which there is one for each call of a runtime of CNI.
func manCommands(e env) []*cli.Command {
	c := verb{
		name: "man", usage: "print the man page mustang(8)",
		run: func(*cli.Context) error {
			app := newApp(e)
			app.Commands = slices.DeleteFunc(slices.Clone(app.Commands), func(c *cli.Command) bool { return c.Hidden })
			page, err := app.ToMan()
			if err == nil {
				_, err = fmt.Fprint(e.stdout, page)
			}
			return err
		},
	}.command()
	c.Hidden = true
	return []*cli.Command{c}
}
