// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const reference = "../plugin-config/mustang.toml"

func environment(pairs map[string]string) func(string) string {
	return func(name string) string { return pairs[name] }
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mustang.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestReferenceHasEveryKeyWithItsDefault(t *testing.T) {
	shipped, err := Load(reference, environment(nil))
	require.NoError(t, err)
	assert.Equal(t, Default(), shipped, "as shipped")

	text, err := os.ReadFile(reference)
	require.NoError(t, err)
	open := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(text), "$1")
	r, err := parse(reference, open)
	require.NoError(t, err)
	for _, key := range keys {
		assert.Contains(t, r.origin, key, "the reference lacks a key")
	}
	uncommented, err := r.validate()
	require.NoError(t, err)
	assert.Equal(t, Default(), uncommented, "with every key set")
}

func TestDefaultIsValid(t *testing.T) {
	r := raw{origin: map[string]string{}}
	c, err := r.validate()
	require.NoError(t, err)
	assert.Equal(t, Default(), c)
}

func TestLoad(t *testing.T) {
	all := `
state_dir = "/srv/mustang/"
socket = "/srv/run/m.sock"
plugin_socket = "/srv/run/plugin.sock"
docker_socket = "off"
containerd_socket = "/srv/run/containerd.sock"
cni_conf_dir = "/srv/cni"
bpffs = "/bpf"
cgroup = "/sys/fs/cgroup/fake"
service_pools = ["10.97.0.0/16"]
address_pools = [{ pool = "10.98.0.0/16", size = 26 }]
log_level = "debug"
log_format = "json"
metrics = "127.0.0.1:9464"
`
	fromFile := Config{
		StateDir: "/srv/mustang", Socket: "/srv/run/m.sock", PluginSocket: "/srv/run/plugin.sock",
		Containerd: "/srv/run/containerd.sock", CNIConfDir: "/srv/cni", BPFFS: "/bpf", Cgroup: "/sys/fs/cgroup/fake",
		ServicePools: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")},
		AddressPools: []AddressPool{{netip.MustParsePrefix("10.98.0.0/16"), 26}},
		LogLevel:     "debug", LogFormat: "json", Metrics: "127.0.0.1:9464",
	}
	c, err := Load(file(t, all), environment(nil))
	require.NoError(t, err)
	assert.Equal(t, fromFile, c)

	c, err = Load("", environment(map[string]string{"MUSTANG_CONFIG": file(t, all)}))
	require.NoError(t, err)
	assert.Equal(t, fromFile, c, "file named by MUSTANG_CONFIG")

	path := file(t, all)
	_, origins, err := Trace(path, environment(map[string]string{"MUSTANG_LOG_LEVEL": "error"}))
	require.NoError(t, err)
	assert.Equal(t, path, origins["socket"])
	assert.Equal(t, "MUSTANG_LOG_LEVEL", origins["log_level"])
	assert.NotContains(t, origins, "uplinks")

	c, err = Load(path, environment(map[string]string{
		"MUSTANG_STATE_DIR": "/env", "MUSTANG_DOCKER_SOCKET": "/d.sock",
		"MUSTANG_SERVICE_POOLS": "10.99.0.0/16, fd00:1::/96",
		"MUSTANG_ADDRESS_POOLS": "10.100.0.0/16=28,fd00:2::/48=64",
		"MUSTANG_LOG_LEVEL":     "error",
	}))
	require.NoError(t, err)
	want := fromFile
	want.StateDir, want.DockerSocket, want.LogLevel = "/env", "/d.sock", "error"
	want.ServicePools = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd00:1::/96")}
	want.AddressPools = []AddressPool{
		{netip.MustParsePrefix("10.100.0.0/16"), 28}, {netip.MustParsePrefix("fd00:2::/48"), 64}}
	assert.Equal(t, want, c, "the environment wins")

	c, err = Load(file(t, `docker_socket = ""`), environment(nil))
	require.NoError(t, err)
	assert.Empty(t, c.DockerSocket)
}

func TestLoadRefuses(t *testing.T) {
	long := "/" + string(make([]byte, 107))
	for _, tt := range []struct {
		text  string
		env   map[string]string
		wants []string // parts of the error
	}{
		{text: `sokcet = "/x"`, wants: []string{"unknown key sokcet", "choose among state_dir, socket"}},
		{text: "[daemon]\nx = 1", wants: []string{"unknown key daemon"}},
		{text: `address_pools = [{ pool = "10.0.0.0/8", seize = 24 }]`, wants: []string{"unknown key address_pools.seize"}},
		{text: `state_dir = 3`, wants: []string{`state_dir`, "string"}},
		{text: `state_dir = "lib"`, wants: []string{`state_dir = "lib"`, "absolute path"}},
		{text: `state_dir = ""`, wants: []string{`state_dir = ""`, "absolute path"}},
		{env: map[string]string{"MUSTANG_SOCKET": "run/m"}, wants: []string{`socket = "run/m" (MUSTANG_SOCKET)`}},
		{env: map[string]string{"MUSTANG_SOCKET": long}, wants: []string{"at most 107 bytes"}},
		{text: `socket = "/run/docker/plugins/mustang.sock"`, wants: []string{"plugin_socket", "must differ from socket"}},
		{text: `log_level = "loud"`, wants: []string{`log_level = "loud"`, "choose among trace, debug, info, warning, error"}},
		{text: `log_format = "xml"`, wants: []string{`log_format = "xml"`, "choose among text, json"}},
		{text: `metrics = "0.0.0.0:9464"`, wants: []string{`metrics = "0.0.0.0:9464"`, "must be a loopback address", "not protected by a password", "agent or a proxy"}},
		{text: `metrics = "[2001:db8::1]:9464"`, wants: []string{"must be a loopback address"}},
		{text: `metrics = "localhost:9464"`, wants: []string{"must be a loopback address with a port, such as 127.0.0.1:9464"}},
		{text: `metrics = ":9464"`, wants: []string{"must be a loopback address with a port"}},
		{text: `metrics = "127.0.0.1:0"`, wants: []string{"must be a loopback address with a port"}},
		{text: `metrics = "metrics.sock"`, wants: []string{"absolute path of a unix socket"}},
		{text: `metrics = "/run/mustang/mustang.sock"`, wants: []string{"must differ from socket"}},
		{text: `service_pools = []`, wants: []string{"service_pools = []", "at least one"}},
		{text: `service_pools = ["10.96.0.0"]`, wants: []string{`service_pools = "10.96.0.0"`, "must be a prefix"}},
		{text: `service_pools = ["10.96.1.0/16"]`, wants: []string{"host bits", "10.96.0.0/16"}},
		{text: `service_pools = ["10.96.0.0/24"]`, wants: []string{"too small: at most /23"}},
		{text: `service_pools = ["fd00::/112"]`, wants: []string{"too small: at most /111"}},
		{text: `address_pools = [{ pool = "10.0.0.0/31", size = 31 }]`, wants: []string{"too small: at most /30"}},
		{text: `service_pools = ["127.0.0.0/8"]`, wants: []string{"loopback"}},
		{text: `service_pools = ["224.0.0.0/8"]`, wants: []string{"unicast"}},
		{text: `service_pools = ["::ffff:10.0.0.0/104"]`, wants: []string{"write an IPv4 prefix as such"}},
		{text: `service_pools = ["10.96.0.0/16", "10.96.128.0/17"]`, wants: []string{"service_pools = 10.96.128.0/17", "overlaps the pool 10.96.0.0/16"}},
		{text: `service_pools = ["10.201.0.0/16"]`, wants: []string{"address_pools = 10.201.0.0/16 (default)", "overlaps"}},
		{text: `address_pools = []`, wants: []string{"address_pools", "at least one"}},
		{text: `address_pools = [{ pool = "10.0.0.0/16", size = 8 }]`, wants: []string{"size = 8: choose 16 to 30"}},
		{text: `address_pools = [{ pool = "10.0.0.0/16", size = 31 }]`, wants: []string{"size = 31: choose 16 to 30"}},
		{text: `address_pools = [{ pool = "fd00::/48" }]`, wants: []string{"size = 0: choose 48 to 126"}},
		{env: map[string]string{"MUSTANG_ADDRESS_POOLS": "10.0.0.0/16"}, wants: []string{`"10.0.0.0/16" (MUSTANG_ADDRESS_POOLS)`, "PREFIX=SIZE"}},
		{text: "log_level = \"a\"\nlog_format = \"b\"", wants: []string{"log_level", "log_format"}},
		{text: "x", wants: []string{"read the configuration", "line 1"}},
	} {
		t.Run(tt.text, func(t *testing.T) {
			c, err := Load(file(t, tt.text), environment(tt.env))
			require.Error(t, err)
			for _, want := range tt.wants {
				assert.ErrorContains(t, err, want)
			}
			assert.Zero(t, c)
		})
	}
}

func TestLoadNeedsANamedFile(t *testing.T) {
	_, err := Load("/nonexistent/mustang.toml", environment(nil))
	assert.ErrorIs(t, err, os.ErrNotExist)
	_, err = Load("", environment(map[string]string{"MUSTANG_CONFIG": "/nonexistent/mustang.toml"}))
	assert.ErrorContains(t, err, "/nonexistent/mustang.toml")
}
