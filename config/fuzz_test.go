// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzLoad reads any file and any variable: it is refused with its name, or the configuration is valid.
func FuzzLoad(f *testing.F) {
	shipped, err := os.ReadFile(reference)
	require.NoError(f, err)
	f.Add(string(shipped), "", "")
	for _, seed := range [][3]string{
		{strings.ReplaceAll(string(shipped), "\n#", "\n"), "", ""},
		{"service_pools = [\"10.97.0.0/16\", \"fd00::/100\"]\naddress_pools = [{pool = \"10.98.0.0/16\", size = 26}]", "log_level", "debug"},
		{"docker_socket = \"off\"\nuplinks = [\"eth0\", \"wg0\"]", "address_pools", "10.201.0.0/16=24, fd6d::/48=64"},
		{"", "service_pools", "::ffff:10.0.0.0/104,10.96.0.1/16, ,0.0.0.0/0"},
		{"", "address_pools", "10.0.0.0/8=99999999999999999999,=,x=1"},
		{"", "uplinks", "eth0,,../x"}, {"", "socket", "/" + strings.Repeat("x", 120)}, {"", "state_dir", "relative"},
		{"state_dir = 7", "", ""}, {"[state_dir]\nx = 1", "", ""}, {"address_pools = [[]]", "", ""}, {"bpffs = \"/a\\u0000b\"", "", ""}, {"uplinks = [\"a\\rb\"]", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		path := filepath.Join(t.TempDir(), "mustang.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		c, err := Load(path, environment(map[string]string{"MUSTANG_" + strings.ToUpper(key): value}))
		if err != nil {
			require.Zero(t, c)
			require.ErrorContains(t, err, "configuration")
			return
		}
		for _, p := range []string{c.StateDir, c.Socket, c.PluginSocket, c.Containerd, c.CNIConfDir, c.BPFFS, c.DockerSocket, c.Cgroup} {
			if p != "" {
				require.True(t, filepath.IsAbs(p) && !strings.ContainsRune(p, 0), "%q", p)
			}
		}
		for _, p := range []string{c.Socket, c.PluginSocket, c.DockerSocket} {
			require.LessOrEqual(t, len(p), maxSocketPath)
		}
		require.NotEqual(t, c.Socket, c.PluginSocket)
		require.Contains(t, LogLevels, c.LogLevel)
		require.Contains(t, LogFormats, c.LogFormat)
		require.NotEmpty(t, c.ServicePools)
		require.NotEmpty(t, c.AddressPools)
		pools := slices.Clone(c.ServicePools)
		for _, a := range c.AddressPools {
			require.GreaterOrEqual(t, a.Size, a.Pool.Bits())
			require.LessOrEqual(t, a.Size, a.Pool.Addr().BitLen()-2)
			pools = append(pools, a.Pool)
		}
		for i, p := range pools {
			require.Equal(t, p, p.Masked())
			require.False(t, p.Addr().Is4In6() || p.Addr().IsLoopback() || p.Addr().IsMulticast())
			for _, other := range pools[:i] {
				require.False(t, p.Overlaps(other), "%s and %s", p, other)
			}
		}
		for _, name := range c.Uplinks {
			require.Regexp(t, `^[^/\s]{1,15}$`, name)
		}
	})
}
