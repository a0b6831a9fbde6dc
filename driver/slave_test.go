// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhoPublishesOnSlaves(t *testing.T) {
	for _, tt := range []struct {
		options map[string]string
		want    string // if nobody said
		leads   bool   // the gateway is the default route
		err     string // if publish=ebpf was asked for
	}{
		{options: map[string]string{"mode": "macvlan"}, want: PublishEBPF, leads: true},
		{options: map[string]string{"mode": "ipvlan"}, want: PublishEBPF, leads: true},
		{options: map[string]string{"mode": "macvlan", "parent": "lan0"}, want: PublishEBPF, leads: true},
		{options: map[string]string{"mode": "ipvlan", "parent": "lan0"}, want: PublishEBPF, leads: true},
		{options: map[string]string{"mode": "macvlan", "ebpf": "off"}, want: PublishGWBridge, err: `contradicts ebpf="off"`},
		{options: map[string]string{"mode": "macvlan", "macvlan_mode": "vepa"}, want: PublishGWBridge, err: "with macvlan_mode=vepa the host does not reach containers"},
		{options: map[string]string{"mode": "macvlan", "macvlan_mode": "private", "parent": "lan0"}, want: PublishOff, leads: true, err: "with macvlan_mode=private the host does not reach containers"},
		{options: map[string]string{"mode": "ipvlan", "ipvlan_flag": "private"}, want: PublishGWBridge, err: "with ipvlan_flag=private the host does not reach containers"},
		{options: map[string]string{"mode": "ipvlan", "ipvlan_mode": "l3"}, want: PublishGWBridge, err: "ipvlan_mode=l3 routes by the host's tables past the programs"},
		{options: map[string]string{"mode": "ipvlan", "ipvlan_mode": "l3s", "parent": "lan0"}, want: PublishGWBridge, err: "ipvlan_mode=l3s routes by the host's tables past the programs"},
	} {
		got, err := ParseOptions(tt.options)
		require.NoError(t, err)
		require.Equal(t, tt.want, got.Publish, "%v", tt.options)
		require.Equal(t, tt.leads, slave{}.leadsOut(&Network{Options: got}), "%v", tt.options)
		require.False(t, slave{}.leadsOut(&Network{Options: got, Internal: true}), "%v", tt.options)
		tt.options["publish"] = PublishEBPF
		if _, err = ParseOptions(tt.options); tt.err == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, tt.err)
		}
	}
}

func TestSlavesAreReachedByTheHostsOwn(t *testing.T) {
	w := newWorld(t)
	w.kernel.addForeign("lan0")
	require.NoError(t, w.CreateNetwork(ctx, network(net1, 1, map[string]string{"mode": "ipvlan", "parent": "lan0"})))
	require.NoError(t, w.CreateNetwork(ctx, network(net2, 2, map[string]string{"mode": "ipvlan"})))
	for id, n := range map[string]struct {
		network string
		number  int
	}{ep1: {net1, 1}, ep2: {net2, 2}} {
		_, err := w.CreateEndpoint(ctx, endpoint(id, n.network, n.number, 2))
		require.NoError(t, err)
	}
	index := func(name string) int { return w.kernel.devices[name].index }
	on := w.datapath.endpoints[netip.MustParseAddr("10.1.0.2")]
	require.Equal(t, []int{index("msh1"), index("lan0")}, []int{on.Via, on.Parent})
	private := w.datapath.endpoints[netip.MustParseAddr("10.2.0.2")]
	require.Equal(t, []int{index("msh2"), 0}, []int{private.Via, private.Parent})
	for _, name := range []string{"msh2", "mpa2"} {
		got := w.datapath.interfaces[index(name)]
		require.True(t, got.Private && got.Egress && got.Masq4 && got.Masq6, name)
		require.Equal(t, index("msh2"), got.Via, name)
		require.Equal(t, "10.2.0.1", got.Gateway4.String(), name)
		require.True(t, w.kernel.devices[name].forwards, name)
	}
	lan := w.datapath.interfaces[index("msh1")]
	require.False(t, lan.Private || lan.Egress || lan.Gateway4.IsValid() || w.kernel.devices["msh1"].forwards)
	require.Contains(t, w.datapath.attached, "lan0", "whose clients reach published ports")
	require.NoError(t, w.DeleteNetwork(ctx, net1))
	require.NotContains(t, w.datapath.attached, "lan0")
}

func TestPortsThatSlavesCannotPublishAreRefused(t *testing.T) {
	w := newWorld(t)
	w.kernel.addForeign("lan0")
	require.NoError(t, w.CreateNetwork(ctx, network(net1, 1, map[string]string{"mode": "macvlan", "macvlan_mode": "vepa", "parent": "lan0"})))
	_, err := w.CreateEndpoint(ctx, endpoint(ep1, net1, 1, 2))
	require.NoError(t, err)
	require.EqualError(t, w.Publish(ctx, net1, ep1, twoPorts),
		"the network net1 publishes no ports, since with macvlan_mode=vepa the host does not reach containers: leave -p away, its containers are reached at their own addresses")
}

func TestAParentThatIsAnUplinkKeepsItsPrograms(t *testing.T) {
	w := newWorld(t)
	w.kernel.addUplink("eth0", "192.0.2.2")
	require.NoError(t, w.SyncUplinks())
	require.NoError(t, w.CreateNetwork(ctx, network(net1, 1, map[string]string{"mode": "macvlan", "parent": "eth0"})))
	w.kernel.devices["eth0"].sends = netip.Addr{} // no default route any more
	require.NoError(t, w.SyncUplinks())
	require.Contains(t, w.datapath.attached, "eth0")
	w.kernel.devices["eth0"].sends = netip.MustParseAddr("192.0.2.2")
	require.NoError(t, w.SyncUplinks())
	require.NoError(t, w.DeleteNetwork(ctx, net1))
	require.Contains(t, w.datapath.attached, "eth0")
}
