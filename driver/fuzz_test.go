// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver/link"
)

// FuzzOptions reads any two options of a network, and one of an endpoint: they are refused with their key, or mean
// something that can be done.
func FuzzOptions(f *testing.F) {
	for _, seed := range [][4]string{
		{"mode", "bridge", "com.docker.network.bridge.name", "br0"}, {"mode", "macvlan", "parent", "eth0.10"}, {"mode", "ipvlan", "ipvlan_mode", "l3s"},
		{"mtu", "1400", "com.docker.network.driver.mtu", "1400"}, {"mtu", "99999999999999999999", "", ""}, {"publish_sources", "10.0.0.0/8, fd00::/8,", "", ""},
		{"publish_sources", "::ffff:10.0.0.0/104", "", ""}, {"publish_sources", "::/0", "lb", "packet"}, {"ebpf", "off", "publish", "ebpf"},
		{"com.docker.network.bridge.host_binding_ipv4", "127.0.0.1", "publish", "off"}, {"parent", "..", "mode", "macvlan"},
		{"mustang.weight", "-1", "mustang.vip", "10.96.0.9,fe80::1%x"}, {"mustang.publish_sources", "0.0.0.0/0", "mustang.service", "a b"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		raw := map[string]string{key1: value1, key2: value2}
		delete(raw, "")
		o, err := ParseOptions(raw)
		if err != nil {
			named := func(key string) bool {
				return key != "" && strings.Contains(err.Error(), strings.Trim(strconv.Quote(key), `"`))
			}
			require.True(t, named(key1) || named(key2) || strings.Contains(err.Error(), "gateway mode"), "%v", err)
		} else {
			require.Contains(t, Modes(), o.Mode)
			require.True(t, o.MTU == 0 || o.MTU >= minMTU && o.MTU <= maxMTU)
			for _, name := range []string{o.Parent, o.Bridge} {
				require.True(t, name == "" || link.CheckName(name) == nil, "%q", name)
			}
			for _, p := range o.Sources {
				require.True(t, p.IsValid() && p == p.Masked() && !p.Addr().Is4In6(), "%s", p)
			}
		}
		if checkEndpointOptions(raw) == nil {
			if text, ok := raw[optionSources]; ok {
				_, err := parseSources(text)
				require.NoError(t, err)
			}
		}
	})
}
