// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// other differs from the default in every key.
func other() Config {
	return Config{
		StateDir: "/s", Socket: "/a", PluginSocket: "/b", DockerSocket: "", Containerd: "/c", CNIConfDir: "/n", BPFFS: "/f", Cgroup: "/g",
		ServicePools: []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")},
		AddressPools: []AddressPool{{netip.MustParsePrefix("10.98.0.0/16"), 26}},
		Uplinks:      []string{"eth0", "eth1"}, LogLevel: "debug", LogFormat: "json", Metrics: "[::1]:9464",
	}
}

func TestSettingsAreTOML(t *testing.T) {
	for _, want := range []Config{Default(), other()} {
		var text strings.Builder
		for _, s := range want.Settings() {
			text.WriteString(s.Key + " = " + s.Value + "\n")
		}
		got, err := Load(file(t, text.String()), environment(nil))
		require.NoError(t, err, text.String())
		assert.Equal(t, want, got)
	}
}

func TestReloadTakesOverWhatIsLive(t *testing.T) {
	after, changed, waiting := Default().Reload(other())
	assert.Len(t, append(changed, waiting...), len(keys), "the other configuration differs in every key")
	for i, s := range after.Settings() {
		want := Default().Settings()[i].Value
		if s.Live {
			want = other().Settings()[i].Value
		}
		assert.Equal(t, want, s.Value, s.Key)
	}
	for _, s := range changed {
		assert.True(t, s.Live, s.Key)
	}
	for _, s := range waiting {
		assert.False(t, s.Live, s.Key)
	}

	same, changed, waiting := after.Reload(after)
	assert.Equal(t, after, same)
	assert.Empty(t, changed)
	assert.Empty(t, waiting)
}
