// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// checkout is a path in the project.
func checkout(path string) string {
	return filepath.Join(strings.TrimSuffix(fakehost(), "tests/fakehost"), path)
}

// documented runs, in the project's directory, a command line that must stand so in a document, alone on a line:
// `documented FILE COMMAND…` on the host, `booted FILE COMMAND…` where systemd runs.
func documented(shell ...string) command {
	return func(_ *scenario, dir string, args []string) result {
		if len(args) < 2 {
			return failure("usage: documented FILE COMMAND…")
		}
		text, err := os.ReadFile(checkout(args[0]))
		if err != nil {
			return result{err: err}
		}
		line := strings.Join(args[1:], " ")
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(l string) bool {
			l, _, _ = strings.Cut(l, " #")
			return strings.TrimSpace(l) == line
		}) {
			return failure("%s does not tell readers to run: %s", args[0], line)
		}
		return run(dir, append(shell[:len(shell):len(shell)], "cd "+checkout(".")+" && "+line)...)
	}
}
