// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/mustang-net/mustang/api"
	"github.com/mustang-net/mustang/drift"
)

func verifyCommand(e env) *cli.Command {
	forms := []string{"table", "json", "yaml"}
	return verb{
		name: "verify", usage: "tell every difference between what mustang wants and what the kernel has",
		about: "The exit code is 0 if there is none, and 1 if there are some. --repair does what a start of the daemon does, looks\n" +
			"again, and says what that has mended. Traffic goes on meanwhile.",
		flags: append(outputFlags(forms), quietFlag("print no table: the exit code tells, and an error"),
			&cli.BoolFlag{Name: "repair", Usage: "make the kernel as it should be", DisableDefaultText: true}),
		run: func(c *cli.Context) error {
			o, err := outputOf(c, e, forms)
			if err != nil {
				return err
			}
			return e.host(c, func(ctx context.Context, h api.Host) error {
				v, err := h.Verify(ctx, c.Bool("repair"))
				if err != nil {
					return err
				}
				if err := printVerification(o, v); err != nil {
					return err
				}
				if n := len(v.Differences); n > 0 {
					return fmt.Errorf("%d %s between what mustang wants and what the kernel has", n, plural(n, "difference"))
				}
				return nil
			})
		},
	}.command()
}

func printVerification(o output, v api.Verification) error {
	switch {
	case o.template != nil:
		return o.execute(v)
	case o.quiet:
		return nil
	case o.form != "table":
		return o.encode(v)
	}
	t := table{
		title:   fmt.Sprintf("Mustang Verify differences:%d mended:%d notes:%d", len(v.Differences), len(v.Mended), len(v.Notes)),
		columns: []column{{"What", 32}, {"Wanted", 24}, {"Found", 24}, {"Do", 0}},
	}
	add := func(list []drift.Difference, do string) {
		for _, d := range list {
			if do != "" {
				d.Do = do
			}
			t.rows = append(t.rows, []string{d.What, d.Wanted, d.Found, d.Do})
		}
	}
	add(v.Differences, "")
	add(v.Mended, "mended")
	add(v.Notes, "")
	return t.write(o.w)
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}
