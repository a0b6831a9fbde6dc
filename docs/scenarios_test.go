// SPDX-License-Identifier: Apache-2.0

package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	named   = regexp.MustCompile("`([a-z]+(?:/[a-z0-9-]+)?)`( \\(long\\)|, in the virtual machine)?")
	tagLine = regexp.MustCompile(`(?m)^# tags:(.*)$`)
)

// What the promises are measured by exists, and runs when the document says.
func TestScenariosOfReliability(t *testing.T) {
	found := 0
	for line := range strings.Lines(prose(t, "RELIABILITY.md")) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(line, "|")
		for _, m := range named.FindAllStringSubmatch(cells[len(cells)-2], -1) {
			if strings.HasPrefix(m[1], "tests/") {
				require.FileExists(t, "../"+m[1])
				continue
			}
			path := filepath.Join("../tests/scenarios", m[1])
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				found++
				continue
			}
			text, err := os.ReadFile(path + ".txtar")
			require.NoError(t, err, "RELIABILITY.md names %s", m[1])
			found++
			var tags []string
			if tagged := tagLine.FindSubmatch(text); tagged != nil {
				tags = strings.Fields(string(tagged[1]))
			}
			for tag, remark := range map[string]string{"long": " (long)", "vm": ", in the virtual machine"} {
				require.Equal(t, slices.Contains(tags, tag), m[2] == remark, "%s: its tags are %q, and RELIABILITY.md says %q", m[1], tags, m[2])
			}
		}
	}
	require.Greater(t, found, 30)
}
