// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/metrics"
)

const root = "../.."

func TestFilesAreWhatIsCommitted(t *testing.T) {
	all, err := files()
	require.NoError(t, err)
	for path, want := range all {
		got, err := os.ReadFile(filepath.Join(root, path))
		require.NoError(t, err)
		assert.Equal(t, string(want), string(got), "%s: run go run ./metrics/gen", path)
	}
}

// exprs are all queries, by where they are.
func exprs() map[string]string {
	out := map[string]string{}
	for _, r := range rows {
		for _, p := range r.panels {
			for _, l := range p.lines {
				out[r.title+"/"+p.title+"/"+l.legend] = l.expr
			}
		}
	}
	for _, a := range alerts {
		out[a.name] = a.expr
	}
	return out
}

// Every metric that a query names is there, and has the labels that the query asks for.
func TestQueriesNameWhatIsThere(t *testing.T) {
	labels := map[string]string{"up": "", "process_resident_memory_bytes": "", "process_cpu_seconds_total": ""} // of Prometheus and its library
	for _, m := range metrics.Catalog() {
		names := []string{m.Name}
		if m.Kind == metrics.Histogram {
			names = []string{m.Name + "_bucket", m.Name + "_sum", m.Name + "_count"}
		}
		for _, name := range names {
			labels[name] = " le " + strings.Join(m.Labels, " ") + " "
		}
	}
	name := regexp.MustCompile(`\b(mustang|process|go|up)(_[a-z_]+|\b)`)
	asked := regexp.MustCompile(`(?:by \(|[{,]\s*)([a-z_, ]+)(?:\)|[=!]~?")`)
	used := map[string]bool{}
	for where, expr := range exprs() {
		outside := regexp.MustCompile(`"[^"]*"`).ReplaceAllString(expr, `"`)
		has := " instance job "
		found := name.FindAllString(outside, -1)
		assert.NotEmpty(t, found, where)
		for _, n := range found {
			l, known := labels[n]
			assert.True(t, known, "%s: there is no metric %s", where, n)
			has += l
			used[strings.TrimSuffix(strings.TrimSuffix(n, "_bucket"), "_count")] = true
		}
		for _, m := range asked.FindAllStringSubmatch(outside, -1) {
			for label := range strings.SplitSeq(m[1], ",") {
				if label = strings.TrimSpace(label); label != "" {
					assert.Contains(t, has, " "+label+" ", "%s: no metric in it has the label %s", where, label)
				}
			}
		}
	}
	for _, m := range metrics.Catalog() {
		if m.Name != "mustang_config_last_reload_timestamp_seconds" && m.Name != "mustang_service_write_failing" {
			assert.True(t, used[m.Name], "neither a panel nor an alert shows %s", m.Name)
		}
	}
}

func TestAlertsSayWhatToDo(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/troubleshooting.md"))
	require.NoError(t, err)
	anchors := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		slug := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors[strings.ReplaceAll(slug, " ", "-")] = true
	}
	names := map[string]bool{}
	for _, a := range alerts {
		assert.False(t, names[a.name], "two alerts are called %s", a.name)
		names[a.name] = true
		assert.NotEmpty(t, a.summary, a.name)
		assert.True(t, anchors[a.anchor], "docs/troubleshooting.md has no heading for %s (%s)", a.name, a.anchor)
		assert.Regexp(t, `^(critical|warning)$`, a.severity)
	}
}

// Panels are beside one another and not on top.
func TestPanelsDoNotOverlap(t *testing.T) {
	text, err := dashboard()
	require.NoError(t, err)
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
		}
	}
	require.NoError(t, json.Unmarshal(text, &d))
	taken := map[[2]int]string{}
	for _, p := range d.Panels {
		g := p.GridPos
		assert.LessOrEqual(t, g.X+g.W, width, p.Title)
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				assert.Empty(t, taken[[2]int{x, y}], "%s is on top", p.Title)
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}
