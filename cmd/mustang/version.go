// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// Set by the linker: -X main.version=1.2.3 -X main.commit=0123abcd. Without, the build information
// that Go records is used.
var version, commit string

func versionCommand(e env) *cli.Command {
	return verb{name: "version", usage: "print the version", run: func(*cli.Context) error {
		_, err := fmt.Fprintf(e.stdout, "mustang version %s\n", versionLine())
		return err
	}}.command()
}

// versionLine is the version and the commit it was built from.
func versionLine() string {
	v, rev := versionAndCommit()
	return fmt.Sprintf("%s (commit %s)", v, rev)
}

// versionAndCommit are "devel" and "unknown" where nothing tells.
func versionAndCommit() (v, rev string) {
	v, rev = version, commit
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	if v == "" && info.Main.Version != "(devel)" {
		v = info.Main.Version
	}
	dirty := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && rev == "":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true" && commit == "":
			dirty = "-dirty"
		}
	}
	if v == "" {
		v = "devel"
	}
	if rev == "" {
		return v, "unknown"
	}
	return v, rev + dirty
}
