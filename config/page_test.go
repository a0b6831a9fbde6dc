// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const pagePath = "../docs/configuration.md"

// examples are other values than the defaults, as somebody may want them.
var examples = map[string]string{
	"state_dir": `"/srv/mustang"`, "socket": `"/run/mustang.sock"`, "plugin_socket": `"/run/docker/plugins/net.sock"`,
	"docker_socket": `"off"`, "containerd_socket": `"/run/k3s/containerd/containerd.sock"`, "cni_conf_dir": `"/etc/cni/mine.d"`,
	"bpffs": `"/run/bpf"`, "cgroup": `"/sys/fs/cgroup/containers.slice"`, "service_pools": `["10.200.0.0/16", "fd00:200::/96"]`,
	"address_pools": `[{ pool = "172.30.0.0/16", size = 26 }, { pool = "fd00:172:30::/48", size = 64 }]`,
	"uplinks":       `["eth0", "wg0"]`, "log_level": `"debug"`, "log_format": `"json"`, "metrics": `"127.0.0.1:9464"`,
}

// inEnvironment are the examples of lists as variables have them; a string is itself.
var inEnvironment = map[string]string{
	"service_pools": "10.200.0.0/16,fd00:200::/96", "address_pools": "172.30.0.0/16=26,fd00:172:30::/48=64", "uplinks": "eth0,wg0",
}

func variable(key string) (name, value string) {
	value = inEnvironment[key]
	if value == "" {
		value = strings.Trim(examples[key], `"`)
	}
	return "MUSTANG_" + strings.ToUpper(key), value
}

// entry is a key of the reference file with what is said of it there.
type entry struct{ key, value, about string }

func entries(t *testing.T) (out []entry) {
	text, err := os.ReadFile(reference)
	require.NoError(t, err)
	setting := regexp.MustCompile(`^#([a-z_]+) = (.*)$`)
	for paragraph := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		lines := strings.Split(paragraph, "\n")
		m := setting.FindStringSubmatch(lines[len(lines)-1])
		if m == nil {
			continue
		}
		var about []string
		for _, line := range lines[:len(lines)-1] {
			about = append(about, strings.TrimPrefix(line, "# "))
		}
		out = append(out, entry{m[1], m[2], strings.Join(about, "\n")})
	}
	return out
}

func page(t *testing.T) string {
	var out strings.Builder
	out.WriteString(`# Configuration

mustang reads ` + "`/etc/mustang/mustang.toml`" + ` if it is there, or the file that ` + "`mustang --config FILE`" + ` or ` + "`MUSTANG_CONFIG`" + ` names.
Every key has a default: an empty file is a good one. [mustang.toml](../plugin-config/mustang.toml) has all keys with their defaults. A
key that mustang does not know, and a value that makes no sense, is refused with the reason.

Each key can be set in the environment, which wins over the file. ` + "`--log-level`" + ` wins over both.

## Look before you start

` + "```" + `
$ mustang --config /etc/mustang/mustang.toml daemon --check
state_dir = "/var/lib/mustang"  # default
…
metrics = "127.0.0.1:9464"  # /etc/mustang/mustang.toml
` + "```" + `

It prints what would be in force and from where, and says what on this host it does not fit: a pool that overlaps a route, a file
system that is not mounted, a port that another program has. The exit code is 0 only if all is right. Nothing is started or changed;
a daemon may run meanwhile.

## Change it while the daemon runs

SIGHUP (` + "`systemctl reload mustang`" + `) has the file read anew. Keys marked *reload* take effect at once. If others have changed, the log
names each, and they wait for the next start: restart the daemon, which interrupts no connection. A file that is wrong changes nothing:
the log says what is wrong with it, and the configuration before goes on. If the metrics cannot be shown where the file wants
them, nothing of it is taken over either. The environment is that of the daemon's start.

## Keys
`)
	for _, e := range entries(t) {
		name, value := variable(e.key)
		about := strings.TrimSpace(strings.ReplaceAll(e.about, "(reload)", ""))
		takes := "at the next start"
		if strings.Contains(e.about, "(reload)") {
			takes = "reload"
		}
		fmt.Fprintf(&out, "\n### %s\n\n%s\n\nDefault: `%s`. Takes effect: %s.\n\n```toml\n%s = %s\n```\n\nOr `%s=%s`.\n", e.key, about, e.value, takes, e.key, examples[e.key], name, value)
	}
	out.WriteString("\nThis page is made from the reference file by `UPDATE=1 go test ./config`.\n")
	return out.String()
}

func TestPageIsTheReference(t *testing.T) {
	want := page(t)
	if os.Getenv("UPDATE") != "" {
		require.NoError(t, os.WriteFile(pagePath, []byte(want), 0o644))
	}
	got, err := os.ReadFile(pagePath)
	require.NoError(t, err)
	assert.Equal(t, want, string(got), "UPDATE=1 go test ./config")
}

func TestReferenceSaysWhatAReloadTakesOver(t *testing.T) {
	live := map[string]bool{}
	for _, s := range Default().Settings() {
		live[s.Key] = s.Live
	}
	list := entries(t)
	assert.Len(t, list, len(keys))
	for _, e := range list {
		assert.Equal(t, live[e.key], strings.Contains(e.about, "(reload)"), e.key)
	}
}

// The examples are right, and the same in the file and in the environment.
func TestExamples(t *testing.T) {
	var text strings.Builder
	vars := map[string]string{}
	for _, key := range keys {
		require.NotEmpty(t, examples[key], key)
		text.WriteString(key + " = " + examples[key] + "\n")
		name, value := variable(key)
		vars[name] = value
	}
	fromFile, err := Load(file(t, text.String()), environment(nil))
	require.NoError(t, err)
	fromEnvironment, err := Load(file(t, ""), environment(vars))
	require.NoError(t, err)
	assert.Equal(t, fromFile, fromEnvironment)
	for i, s := range fromFile.Settings() {
		assert.NotEqual(t, Default().Settings()[i].Value, s.Value, "the example of %s is the default", s.Key)
	}
}
