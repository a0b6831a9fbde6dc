// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v2"
)

const referencePath = "../../docs/cli.md"

// TestReference compares docs/cli.md with what the commands say of themselves; UPDATE=1 writes it.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Command line\n\nMade from what the commands say of themselves (`UPDATE=1 go test ./cmd/mustang -run TestReference`); `man mustang` has the same.\n\nThe exit code is 0 if all was done, 1 if something failed or was refused, and 2 for a mistake in the command line itself; `status`, `verify` and `daemon --check` say below what theirs means.\n\nFlags for every command, before it:\n\n")
	app := newApp(env{})
	describeFlags(&b, app.Flags)
	for _, c := range app.Commands {
		describe(&b, "mustang", c)
	}
	if os.Getenv("UPDATE") != "" {
		require.NoError(t, os.WriteFile(referencePath, []byte(b.String()), 0o644))
	}
	text, err := os.ReadFile(referencePath)
	require.NoError(t, err)
	if string(text) != b.String() {
		t.Error("docs/cli.md is not what the commands say: UPDATE=1 go test ./cmd/mustang -run TestReference")
	}
}

// describe writes a section for each command that does something.
func describe(b *strings.Builder, parent string, c *cli.Command) {
	name := parent + " " + c.Name
	switch {
	case c.Hidden:
	case len(c.Subcommands) > 0:
		for _, sub := range c.Subcommands {
			describe(b, name, sub)
		}
	default:
		usage := name
		if len(c.Flags) > 0 {
			usage += " [FLAGS]"
		}
		if c.ArgsUsage != "" {
			usage += " " + c.ArgsUsage
		}
		fmt.Fprintf(b, "\n## %s\n\n`%s`: %s.\n", name, usage, c.Usage)
		if c.Description != "" {
			fmt.Fprintf(b, "\n```text\n%s\n```\n", c.Description)
		}
		if len(c.Flags) > 0 {
			b.WriteString("\n")
			describeFlags(b, c.Flags)
		}
	}
}

func describeFlags(b *strings.Builder, flags []cli.Flag) {
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		fmt.Fprintf(b, "- %s\n", strings.ReplaceAll(strings.Join(strings.Fields(strings.ReplaceAll(f.String(), "\t", ": ")), " "), "\n", " "))
	}
}
