// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/mustang-net/mustang/driver/link"
)

func TestAPairIsUpMarkedAndKeepsItsMAC(t *testing.T) {
	begin(t)
	dev := newPair(t)
	l, err := netlink.LinkByName(pair().Host)
	require.NoError(t, err)
	require.Equal(t, "mustang:"+owner, l.Attrs().Alias)
	require.NotZero(t, l.Attrs().RawFlags&1, "up")
	require.Equal(t, 1400, l.Attrs().MTU)
	require.Equal(t, dev.Index, l.Attrs().Index)
	require.Equal(t, dev.MAC, l.Attrs().HardwareAddr)
	assign, err := os.ReadFile("/sys/class/net/" + pair().Host + "/addr_assign_type")
	require.NoError(t, err)
	require.Equal(t, "3", strings.TrimSpace(string(assign)), "set by us: systemd-udevd gives no other")
	peer, err := netlink.LinkByName(pair().Peer)
	require.NoError(t, err)
	require.Equal(t, mac, peer.Attrs().HardwareAddr)
	require.NoError(t, netlink.LinkSetUp(peer)) // the carrier brings a link-local address, if any comes
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	require.NoError(t, err)
	require.Empty(t, addrs)

	again, err := host.CreatePair(pair())
	require.NoError(t, err)
	require.Equal(t, dev, again, "the same when it is made again")
	owned, err := host.Owned()
	require.NoError(t, err)
	require.Equal(t, map[string]string{pair().Host: owner}, owned)
	found, err := host.Find(pair().Host)
	require.NoError(t, err)
	require.Equal(t, dev, found)
	name, err := host.Name(dev.Index)
	require.NoError(t, err)
	require.Equal(t, pair().Host, name)
}

func TestAPairThatADyingDaemonLeftHalfMadeIsFinished(t *testing.T) {
	begin(t)
	dev := newPair(t)
	l, err := netlink.LinkByName(pair().Host)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetAlias(l, ""))
	require.NoError(t, netlink.LinkSetDown(l))
	l, err = netlink.LinkByName(pair().Host)
	require.NoError(t, err)
	require.Empty(t, l.Attrs().Alias)
	owned, err := host.Owned()
	require.NoError(t, err)
	require.Equal(t, map[string]string{pair().Host: ""}, owned, "found without a record, it is removed")
	again, err := host.CreatePair(pair())
	require.NoError(t, err)
	require.Equal(t, dev, again)
	l, err = netlink.LinkByName(pair().Host)
	require.NoError(t, err)
	require.Equal(t, "mustang:"+owner, l.Attrs().Alias)
	require.NotZero(t, l.Attrs().RawFlags&1, "up")
}

func TestDevicesOfAnyKindThatADyingDaemonLeftHalfMadeAreMadeAnew(t *testing.T) {
	begin(t)
	run(t, "ip link add lower type veth")
	t.Cleanup(func() { run(t, "ip link del lower") })
	const mine = "br-of-mine" // also by a name of the user's
	slave := link.Slave{Owner: owner, Name: "mshslave", Parent: "lower", Type: "macvlan", Mode: "bridge", MAC: mac}
	bridge := link.Bridge{Owner: owner, Name: mine, MAC: mac}
	made := func() {
		_, err := host.CreateSlave(slave)
		require.NoError(t, err)
		_, err = host.CreateBridge(bridge)
		require.NoError(t, err)
	}
	unmark := func() {
		for _, name := range []string{slave.Name, mine} {
			l, err := netlink.LinkByName(name)
			require.NoError(t, err)
			require.NoError(t, netlink.LinkSetAlias(l, ""))
		}
	}
	made()
	unmark()
	owned, err := host.Owned()
	require.NoError(t, err)
	require.Equal(t, map[string]string{slave.Name: "", mine: ""}, owned, "whoever cleans up after it finds them")
	made()
	owned, err = host.Owned()
	require.NoError(t, err)
	require.Equal(t, map[string]string{slave.Name: owner, mine: owner}, owned)
	unmark()
	for _, name := range []string{slave.Name, mine} {
		require.NoError(t, host.Delete(name, owner))
		_, err := host.Find(name)
		require.ErrorIs(t, err, link.ErrNoDevice)
	}
}

func TestForeignDevicesOfOurNamesAreLeftAlone(t *testing.T) {
	for _, name := range []string{pair().Host, pair().Peer} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			run(t, "ip link add "+name+" type veth peer name other0")
			t.Cleanup(func() { run(t, "ip link del "+name) })
			_, err := host.CreatePair(pair())
			require.ErrorContains(t, err, "create the veth pair mst01234567890, msp01234567890: file exists: "+
				"a device of that name is not this endpoint's: remove or rename it")
			require.NoError(t, host.Delete(name, owner))
			_, err = netlink.LinkByName(name)
			require.NoError(t, err, "still there")
		})
	}
	t.Run("another endpoint's", func(t *testing.T) {
		begin(t)
		newPair(t)
		other := pair()
		other.Owner = "another"
		_, err := host.CreatePair(other)
		require.Error(t, err)
		require.NoError(t, host.Delete(pair().Host, "another"))
		_, err = netlink.LinkByName(pair().Host)
		require.NoError(t, err, "still there")
	})
}

func TestDeletingWhatIsGoneIsNoError(t *testing.T) {
	begin(t)
	newPair(t)
	require.NoError(t, host.Delete(pair().Host, owner))
	require.NoError(t, host.Delete(pair().Host, owner))
	_, err := host.Find(pair().Host)
	require.ErrorContains(t, err, "find the device mst01234567890")
}

func TestConnect(t *testing.T) {
	begin(t)
	newPair(t)
	addrs := []netip.Addr{netip.MustParseAddr("10.7.0.2"), netip.MustParseAddr("fd07::2")}
	gateways := []netip.Addr{netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("fd07::1")}
	for range 2 { // and again
		require.NoError(t, host.Connect(pair().Host, addrs, gateways, mac))
	}
	run(t, "ip link set "+pair().Peer+" up")
	require.Contains(t, run(t, "ip -4 route"), "10.7.0.2 dev mst01234567890 proto 205 scope link src 10.7.0.1 ")
	require.Contains(t, run(t, "ip -6 route"), "fd07::2 dev mst01234567890 proto 205 src fd07::1 metric 1024")
	require.NotContains(t, run(t, "ip -6 route"), "fd07::1 dev", "no route of the kernel's for the gateway")
	neigh := run(t, "ip neigh show dev "+pair().Host)
	require.Contains(t, neigh, "10.7.0.2 lladdr 02:42:0a:00:00:02 PERMANENT")
	require.Contains(t, neigh, "fd07::2 lladdr 02:42:0a:00:00:02 PERMANENT")
	shown := run(t, "ip addr show dev "+pair().Host)
	require.Contains(t, shown, "inet 10.7.0.1/32 scope link")
	require.Contains(t, shown, "inet6 fd07::1/128 scope global nodad")
	require.NotContains(t, shown, "tentative")
	require.Contains(t, run(t, "ip route get fd07::2"), "src fd07::1")
	for addr, want := range map[netip.Addr]bool{gateways[0]: true, gateways[1]: true, addrs[0]: false} {
		has, err := host.HasAddr(addr)
		require.NoError(t, err)
		require.Equal(t, want, has, addr)
	}
	routes, err := host.Routes()
	require.NoError(t, err)
	require.Empty(t, routes, "ours are none of the host's networks")
	require.ErrorContains(t, host.Connect("none0", addrs, gateways, mac), "find the device none0")
}
