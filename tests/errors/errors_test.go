// SPDX-License-Identifier: Apache-2.0

package errors

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = "../.."

// packages whose errors a user gets to see, with what they are about.
var packages = []struct{ dir, about string }{
	{"driver", "Networks, endpoints and published ports (`docker network create`, `docker run`)"},
	{"driver/docker", "What the engine hands on (`docker network create`, `docker run`)"},
	{"driver/cni", "Networks and containers of CNI runtimes (nerdctl)"},
	{"driver/link", "Devices of the host"},
	{"driver/ports", "Ports of the host"},
	{"ipam", "Subnets and addresses (`--subnet`, `--ip`)"},
	{"service", "Services (`mustang svc`, labels)"},
	{"config", "Configuration (mustang.toml, MUSTANG_*)"},
	{"cmd/mustang", "Command line"},
	{"api", "Command line and daemon"},
	{"bpf", "The eBPF datapath"},
	{"nft", "Networks with ebpf=off"},
	{"state", "The state file"},
}

// Why a text need not say what to do.
const (
	part    = "part of a text that says it"
	program = "no user's doing: a fault of the program that calls us, or of ours"
	sign    = "a sign for code, which the text around it explains"
)

// silent are the texts that do not say what to do.
var silent = map[string]string{
	"endpoint option %s=%q %w": part, "network option %s=%q %w": part, "endpoint options: %s": part, "configuration: %s = %v (%s): %s": part,
	"its device %s belongs to the endpoint %s": program, "%w (and %d more)": part, "service %d: backend: %w": part, "inspect %w": part,
	"the container may share it there, and is on both networks": sign, "not found": sign, "exhausted": sign, "invalid request": sign,
	"no such pool": sign, "reserved": sign, "no mustang daemon is running": sign, "this kernel has no TCX links": sign,
	"there is no such device": sign, "there is no such network namespace": sign, "there is no such sandbox": sign,
	"another namespace is at %s": sign, "the sandbox has no table of ours": sign, "the state is closed": sign,
	"the state file is damaged": sign, "the state was written by a newer mustang": sign,
	"the call has no %s": program, "the call's body is larger than %d bytes": program, "the call's body is not a JSON object": program,
	"prevResult has no interface … in a sandbox": program, "prevResult is missing": program, "read prevResult": program, "read CNI_ARGS": part,
	"read the network configuration": part, "no container can be added to the network": part, "find a free %s port: no address is given": program,
	"record %s/%s belongs to no pool": program, "record %s/%s is not the pool that its key says": program, "release addresses of pool %s: %w: no owner given": program,
	"ifname and netns are needed": program, "read the request: more than one JSON value": program, "ref is missing": program,
	"%s%s is missing": part, "%sunexpected argument %q": part, "%sunknown command %q: %sCommands: %s": part, "%sunknown flag %s": part,
	"mustang is not ready%s": part, "bucket %q belongs to the store itself": program,
	"read mst_events: an event of %d bytes is of another build: %w": program,
	"%d %s between what mustang wants and what the kernel has":      part, "no container on the network runs": sign,
	"%w (layout %d, this one knows %d)": part, "%w: %d bytes of %d are left": part, "%w: it has no layout version, so it is not mustang's": part,
	"%w: layout %d never existed": part, "%w: record %q/%q is not JSON": part, "%w: page %d %s": part, "--ifname %q %w": part, "%w: its checksum is another": part,
	"%w: record %q/%q is out of its place": part, "%w: it has %d records, not the %d that were written": part,
	"another process has held it for long": sign,
}

// texts are the errors of each package.
func texts(t *testing.T) map[string][]Text {
	out := map[string][]Text{}
	for _, p := range packages {
		list, err := Find(filepath.Join(root, p.dir))
		require.NoError(t, err)
		out[p.dir] = list
	}
	return out
}

func TestErrorsSayWhatToDo(t *testing.T) {
	used := map[string]bool{}
	found := texts(t)
	for _, p := range packages {
		for _, text := range found[p.dir] {
			if _, known := silent[text.Format]; known {
				used[text.Format] = true
			} else if !text.Advises() {
				t.Errorf("%s: %q does not say what to do, or what would be right: add it, or the reason to the table silent", text.Where, text.Format)
			}
		}
	}
	for format := range silent {
		assert.True(t, used[format], "%q is in the table silent, and is no error any more", format)
	}
}

// tested is every test and scenario in one text.
func tested(t *testing.T) string {
	var all strings.Builder
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if (strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".txtar")) && filepath.Dir(path) != "." {
			text, err := os.ReadFile(path)
			all.WriteString(strings.ReplaceAll(string(text), `\.`, "."))
			return err
		}
		return nil
	}))
	return all.String()
}

// untried has the texts that no test quotes yet; what is new is tried.
const untried = "testdata/untried.txt"

// TestErrorsAreTried: every text is quoted by a test or a scenario, by two words in a row at least.
func TestErrorsAreTried(t *testing.T) {
	text, known := tested(t), map[string]bool{}
	list, err := os.ReadFile(untried)
	require.NoError(t, err)
	for line := range strings.Lines(string(list)) {
		known[strings.TrimSuffix(line, "\n")] = true
	}
	found := texts(t)
	for _, p := range packages {
		for _, one := range found[p.dir] {
			if _, excused := silent[one.Format]; excused || quoted(text, one.fragment()) {
				delete(known, one.Format)
				continue
			}
			assert.True(t, known[one.Format], "%s: no test quotes %q: add one, such as a line in mistakes_test.go", one.Where, one.Format)
			delete(known, one.Format)
		}
	}
	assert.Empty(t, known, "in %s, and no error any more", untried)
}

// quoted tells whether two words in a row are in the text, or the one that there is.
func quoted(text, fragment string) bool {
	words := strings.Fields(fragment)
	if len(words) == 1 {
		return strings.Contains(text, fragment)
	}
	for i := range len(words) - 1 {
		if pair := words[i] + " " + words[i+1]; len(pair) > 9 && strings.Contains(text, pair) {
			return true
		}
	}
	return false
}

// page is docs/errors.md.
func page(t *testing.T) string {
	var out strings.Builder
	out.WriteString(`# Errors

What mustang says when something cannot be done, and what to do then. A ` + "`…`" + ` stands for what differs: a name, an address, another error.
Docker puts "Error response from daemon: failed to …:" before it.

An error that ends in ` + "`(request 1a2b3c4d)`" + ` is in mustang's log under that number, with the call that it came from and how long it took:
` + "`journalctl -u mustang | grep request=1a2b3c4d`" + `.

This page is made from the source by ` + "`UPDATE=1 go test ./tests/errors`" + `.
`)
	found := texts(t)
	for _, p := range packages {
		out.WriteString("\n## " + p.about + "\n\n")
		seen := map[string]bool{}
		for _, one := range found[p.dir] {
			line := strings.TrimSpace(verbs.ReplaceAllString(one.Format, "…"))
			if _, excused := silent[one.Format]; !excused && !seen[line] {
				seen[line] = true
				fmt.Fprintf(&out, "- ``%s``\n", line)
			}
		}
	}
	return out.String()
}

func TestPageIsTheSource(t *testing.T) {
	const path = root + "/docs/errors.md"
	want := page(t)
	if os.Getenv("UPDATE") != "" {
		require.NoError(t, os.WriteFile(path, []byte(want), 0o644))
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("docs/errors.md is not what the source says: UPDATE=1 go test ./tests/errors: %s", diff)
	}
}
