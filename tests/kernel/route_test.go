// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRefuse(t *testing.T) {
	begin(t)
	for _, p := range []string{"10.96.0.0/16", "fd6d:7374:10::/96"} {
		prefix := netip.MustParsePrefix(p)
		for range 2 {
			require.NoError(t, host.Refuse(prefix))
		}
		refused, err := host.Refused()
		require.NoError(t, err)
		require.Equal(t, []netip.Prefix{prefix}, refused)
		routes, err := host.Routes()
		require.NoError(t, err)
		require.Empty(t, routes)
		for range 2 {
			require.NoError(t, host.Unrefuse(prefix))
		}
		refused, err = host.Refused()
		require.NoError(t, err)
		require.Empty(t, refused)
	}
	run(t, "ip route add unreachable 10.97.0.0/16")
	t.Cleanup(func() { run(t, "ip route del unreachable 10.97.0.0/16") })
	refused, err := host.Refused()
	require.NoError(t, err)
	require.Empty(t, refused, "an operator's is none of ours")
	require.NoError(t, host.Unrefuse(netip.MustParsePrefix("10.97.0.0/16")))
	require.Contains(t, run(t, "ip route"), "unreachable 10.97.0.0/16")
}

func TestRoutesAndUplinkMTU(t *testing.T) {
	begin(t)
	require.Equal(t, 1500, host.UplinkMTU(), "without a default route")
	run(t, "ip link add up0 mtu 1420 type veth peer name up1")
	t.Cleanup(func() { run(t, "ip link del up0") })
	run(t, "ip link set up0 up")
	run(t, "ip link set up1 up")
	run(t, "ip addr add 192.168.7.2/24 dev up0")
	run(t, "ip -6 addr add fd77::2/64 dev up0 nodad")
	run(t, "ip route add blackhole 172.30.0.0/16")
	t.Cleanup(func() { run(t, "ip route del blackhole 172.30.0.0/16") })
	routes, err := host.Routes()
	require.NoError(t, err)
	require.ElementsMatch(t, []netip.Prefix{
		netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("fd77::/64"),
	}, routes)

	run(t, "ip -6 route add unreachable default metric 10")
	require.Equal(t, 1500, host.UplinkMTU(), "an unreachable default leads nowhere")
	run(t, "ip -6 route del unreachable default metric 10")
	run(t, "ip route add default via 192.168.7.1")
	require.Equal(t, 1420, host.UplinkMTU())
	run(t, "ip route replace default nexthop via 192.168.7.1 nexthop via 192.168.7.3")
	require.Equal(t, 1420, host.UplinkMTU(), "over several hops")
	run(t, "ip route del default")
	run(t, "ip -6 route add default via fd77::1")
	require.Equal(t, 1420, host.UplinkMTU(), "IPv6 only")
	after, err := host.Routes()
	require.NoError(t, err)
	require.ElementsMatch(t, routes, after, "default routes are no networks")
}
