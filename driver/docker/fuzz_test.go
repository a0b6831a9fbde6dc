// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
)

// FuzzPortMap reads any port map: it is refused, or each of its ports is one that can be published.
func FuzzPortMap(f *testing.F) {
	for _, entries := range []string{
		`[]`, `null`, `{}`, `[null]`, `[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`,
		`[{"Proto":17,"Port":53,"HostPort":8000,"HostPortEnd":8010},{"Proto":6,"Port":80}]`, `[{"Proto":132,"Port":80}]`,
		`[{"Proto":6,"Port":80,"HostIP":"::ffff:127.0.0.1"}]`, `[{"Proto":6,"Port":80,"HostIP":"fe80::1%eth0"}]`, `[{"Proto":6,"Port":65536}]`,
		`[{"Proto":6,"Port":80,"HostPortEnd":80}]`, `[{"proto":6,"PORT":80,"hostport":1,"HostPortEnd":65535}]`,
	} {
		f.Add([]byte(entries), []byte("true"))
	}
	f.Fuzz(func(t *testing.T, entries, only4 []byte) {
		ports, err := portMap(options{keyPortMap: json.RawMessage(entries), keyOnly4: json.RawMessage(only4)})
		if err != nil {
			require.Nil(t, ports)
			return
		}
		for _, p := range ports {
			require.Contains(t, []bpf.Protocol{bpf.ProtocolTCP, bpf.ProtocolUDP}, p.Protocol)
			require.NotZero(t, p.Port)
			require.LessOrEqual(t, p.HostPort, p.HostPortEnd)
			require.Equal(t, p.HostPort == 0, p.HostPortEnd == 0)
			if p.Host != (netip.Addr{}) {
				require.False(t, p.Host.Is4In6() || p.Host.IsMulticast() || p.Host.Zone() != "")
			}
		}
	})
}
