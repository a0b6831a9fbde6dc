// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Kind says what a host's end is, and so what is held of it.
type Kind int

// The kinds of ends.
const (
	Routed Kind = iota // of one endpoint: sends from its addresses only, and to its network
	Port               // of a bridge: sends from its addresses only
	Bridge             // that the ports of a network are plugged into
	Slave              // the host's own, by which it reaches a network's slaves
)

// End is a device of the host that leads to endpoints of a network.
type End struct {
	Name    string
	Kind    Kind
	Network uint32
	Addrs   []netip.Addr // of the endpoint behind it
	// Gateways are the host's addresses that endpoints reach by it, besides which there are none for them. What
	// comes in by a Slave is not held to them: on a LAN it is the host's own way in.
	Gateways []netip.Addr
}

// SetEnds makes these the ends that the host's tables know, in one transaction; without any there are no
// tables.
func (t *Tables) SetEnds(ends []End) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends = slices.Clone(ends)
	return t.writeEnds()
}

func (t *Tables) writeEnds() error {
	t.endsErr = nil
	if err := t.kernel.setEnds(t.ends); err != nil {
		t.endsErr = fmt.Errorf("write the nftables of %d devices: %w", len(t.ends), err)
	}
	return t.endsErr
}

// Check looks whether somebody removed what the host's ends need, as a firewall does that is loaded anew, and mends it, and
// what could not be written before: of the host, and of sandboxes.
func (t *Tables) Check() (mended bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retry()
	if t.endsErr == nil {
		if len(t.ends) == 0 {
			return false, nil
		}
		stand, err := t.kernel.endsStand(t.ends)
		if err != nil || stand {
			return false, err
		}
	}
	return true, t.writeEnds()
}

// The host's tables: of what it routes, and of what bridges forward.
func hostTables() (inet, bridge *nftables.Table) {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet},
		&nftables.Table{Name: tableName, Family: nftables.TableFamilyBridge}
}

func (netlink) setEnds(ends []End) error {
	c, err := nftables.New(nftables.WithSockOptions(sized))
	if err != nil {
		return err
	}
	inet, bridge := hostTables()
	if len(ends) == 0 {
		if err := dropTables(c); err != nil {
			return err
		}
		return letThrough(nil)
	}
	counted := drops(inet) // before the table goes
	c.DelTable(c.AddTable(inet))
	if err := addIsolation(adder{c, addCounters(c, inet, counted)}, ends); err != nil {
		return err
	}
	ports := slices.ContainsFunc(ends, func(e End) bool { return e.Kind == Port })
	if ports {
		counted := drops(bridge)
		c.DelTable(c.AddTable(bridge))
		if err := addPorts(adder{c, addCounters(c, bridge, counted)}, ends); err != nil {
			return err
		}
	} else if has, err := hasTable(bridge); err == nil && has {
		c.DelTable(bridge)
	}
	if err := c.Flush(); err != nil {
		if ports {
			err = fmt.Errorf("%w (mode=bridge also needs CONFIG_NF_TABLES_BRIDGE)", err)
		}
		return explain(err)
	}
	return letThrough(ends)
}

// dropTables removes what tables there are. A kernel without nftables has none.
func dropTables(c *nftables.Conn) error {
	inet, bridge := hostTables()
	for _, t := range []*nftables.Table{inet, bridge} {
		if has, err := hasTable(t); err == nil && has {
			c.DelTable(t)
		}
	}
	return c.Flush()
}

func hasTable(t *nftables.Table) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	all, err := c.ListTablesOfFamily(t.Family)
	return slices.ContainsFunc(all, func(o *nftables.Table) bool { return o.Name == t.Name }), err
}

// endsStand tells whether the tables have the chains that setEnds makes, with rules in them, and the engine lets the ends through.
func (netlink) endsStand(ends []End) (bool, error) {
	inet, bridge := hostTables()
	wanted := map[*nftables.Table][]string{inet: {"forward", "input", "prerouting", "sources"}}
	for _, e := range ends {
		if e.Kind == Port {
			wanted[bridge] = []string{"prerouting", "sources"}
		} else if name := networkName(e.Network); !slices.Contains(wanted[inet], name) {
			wanted[inet] = append(wanted[inet], name)
		}
	}
	for table, names := range wanted {
		if stand, err := chainsStand(table, names); err != nil || !stand {
			return false, err
		}
	}
	return isLetThrough(ends)
}

// chainsStand tells whether a table has the chains, none of which is empty: a firewall that is loaded anew may flush them.
func chainsStand(table *nftables.Table, names []string) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return false, err
	}
	there := map[string]bool{}
	for _, ch := range chains {
		there[ch.Name] = there[ch.Name] || ch.Table.Name == table.Name
	}
	for _, name := range names {
		if !there[name] {
			return false, nil
		}
		rules, err := c.GetRules(table, &nftables.Chain{Name: name, Table: table})
		if err != nil || len(rules) == 0 {
			return false, err
		}
	}
	return true, nil
}

func networkName(n uint32) string { return fmt.Sprintf("network-%d", n) }

// addIsolation keeps what the host forwards within the networks, and senders to their own addresses.
func addIsolation(a adder, ends []End) error {
	var all, checked, inner []nftables.SetElement
	var from []nftables.SetElement
	members := map[uint32][]nftables.SetElement{}
	for _, e := range ends {
		if e.Kind == Port {
			continue
		}
		name := nftables.SetElement{Key: ifname(e.Name)}
		all, members[e.Network] = append(all, name), append(members[e.Network], name)
		from = append(from, nftables.SetElement{
			Key: ifname(e.Name), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: networkName(e.Network)},
		})
		if e.Kind != Slave {
			inner = append(inner, name)
		}
		if e.Kind == Routed {
			checked = append(checked, name)
		}
	}
	for n, names := range members {
		own := &nftables.Set{Table: a.table, Name: networkName(n), KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
		if err := a.c.AddSet(own, names); err != nil {
			return err
		}
		ch := a.chain(networkName(n))
		a.rule(ch, loads(expr.MetaKeyOIFNAME, reg), in(own), accepts)
		a.rule(ch, countsAs(isolated), dropped)
	}
	names := &nftables.Set{Table: a.table, Name: "ends", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	networks := &nftables.Set{Table: a.table, Name: "networks", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian, IsMap: true, DataType: nftables.TypeVerdict}
	if err := a.c.AddSet(names, all); err != nil {
		return err
	}
	if err := a.c.AddSet(networks, from); err != nil {
		return err
	}
	// before the engine's own, whose accept does not end ours
	forward := a.hook("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, -1)
	a.rule(forward, stateIs(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accepts)
	a.rule(forward, loads(expr.MetaKeyIIFNAME, reg), follows(networks))
	a.rule(forward, loads(expr.MetaKeyOIFNAME, reg), in(names), countsAs(isolated), dropped)
	gated := &nftables.Set{Table: a.table, Name: "gated", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if err := a.c.AddSet(gated, inner); err != nil {
		return err
	}
	if err := addInput(a, gated, ends); err != nil {
		return err
	}
	return addSources(a, checked, ends, Routed)
}

// addInput lets endpoints reach no more of the host than the gateways of the device that they come in by. (The
// kernel's own idea of an address's device does not help: several devices have one gateway's.)
func addInput(a adder, gated *nftables.Set, ends []End) error {
	input := a.hook("input", nftables.ChainTypeFilter, nftables.ChainHookInput, -1)
	a.rule(input, stateIs(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accepts)
	const addr = reg + unix.IFNAMSIZ/4 // after the device's name
	for i := range families {
		f := &families[i]
		gateways := &nftables.Set{
			Table: a.table, Name: "gateways" + f.suffix, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, f.kind), Concatenation: true,
		}
		var elements []nftables.SetElement
		for _, e := range ends {
			for _, gw := range e.Gateways {
				if familyOf(gw) == f {
					elements = append(elements, nftables.SetElement{Key: padded(ifname(e.Name), gw.AsSlice())})
				}
			}
		}
		if err := a.c.AddSet(gateways, elements); err != nil {
			return err
		}
		a.rule(input, f.is(), loads(expr.MetaKeyIIFNAME, reg), f.loadsDaddr(addr), in(gateways), accepts)
	}
	a.rule(input, loads(expr.MetaKeyIIFNAME, reg), in(gated),
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		equals(reg, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)), countsAs(isolated), dropped)
	return nil
}

// addPorts keeps the ports of bridges to their own addresses.
func addPorts(a adder, ends []End) error {
	var checked []nftables.SetElement
	for _, e := range ends {
		if e.Kind == Port {
			checked = append(checked, nftables.SetElement{Key: ifname(e.Name)})
		}
	}
	return addSources(a, checked, ends, Port)
}

// addSources drops what ends of a kind send from addresses that are not theirs.
func addSources(a adder, checked []nftables.SetElement, ends []End, kind Kind) error {
	names := &nftables.Set{Table: a.table, Name: "checked", KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if err := a.c.AddSet(names, checked); err != nil {
		return err
	}
	sources := a.chain("sources")
	iif := loads(expr.MetaKeyIIFNAME, reg)
	const addr = reg + unix.IFNAMSIZ/4 // after the device's name
	for i := range families {
		f := &families[i]
		own := &nftables.Set{
			Table: a.table, Name: "sources" + f.suffix, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, f.kind), Concatenation: true,
		}
		var elements []nftables.SetElement
		for _, e := range ends {
			for _, x := range e.Addrs {
				if e.Kind == kind && familyOf(x) == f {
					elements = append(elements, nftables.SetElement{Key: padded(ifname(e.Name), x.AsSlice())})
				}
			}
		}
		if err := a.c.AddSet(own, elements); err != nil {
			return err
		}
		ethertype := port(unix.ETH_P_IP)
		if f == &families[1] {
			ethertype = port(unix.ETH_P_IPV6)
			addDiscovery(a, sources, own, kind)
		}
		a.rule(sources, etherIs(ethertype), iif, f.loadsSaddr(addr), in(own), returns)
		if kind == Port && f == &families[0] {
			arp := &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 14, Len: 4} // sender's address
			first, second := *arp, *arp
			first.DestRegister, second.DestRegister = reg, addr
			a.rule(sources, etherIs(port(unix.ETH_P_ARP)), &first, equals(reg, make([]byte, 4)), returns) // a probe
			a.rule(sources, etherIs(port(unix.ETH_P_ARP)), iif, &second, in(own), returns)
		}
	}
	a.rule(sources, countsAs(spoofed), dropped)
	prerouting := a.hook("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, int32(*nftables.ChainPriorityRaw))
	a.rule(prerouting, iif, in(names), jumps("sources"))
	return nil
}

// The types of ICMPv6 messages that say who is who on a link.
const (
	routerAdvertisement    = 134
	neighbourAdvertisement = 136
	redirect               = 137
)

var linkLocal = netip.MustParsePrefix("fe80::/10")

// addDiscovery lets endpoints take part in neighbour discovery and MLD, which need not come from addresses of theirs, but not
// speak as routers, nor as the neighbours that the bridge of a port leads to.
func addDiscovery(a adder, sources *nftables.Chain, own *nftables.Set, kind Kind) {
	f := &families[1]
	icmp := rule(etherIs(port(unix.ETH_P_IPV6)), protocolIs(f.icmp))
	is := func(kind byte) []expr.Any {
		return rule(icmp, &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: 1}, equals(reg, []byte{kind}))
	}
	for _, routers := range []byte{routerAdvertisement, redirect} {
		a.rule(sources, is(routers), countsAs(spoofed), dropped)
	}
	if kind == Port {
		target := func(r uint32) expr.Any {
			return &expr.Payload{DestRegister: r, Base: expr.PayloadBaseTransportHeader, Offset: 8, Len: f.addr}
		}
		advertised := a.chain("advertised")
		a.rule(advertised, target(reg), f.isIn(linkLocal), returns)
		a.rule(advertised, loads(expr.MetaKeyIIFNAME, reg), target(reg+unix.IFNAMSIZ/4), in(own), returns)
		a.rule(advertised, countsAs(spoofed), dropped)
		a.rule(sources, is(neighbourAdvertisement), jumps(advertised.Name))
	}
	for _, p := range []netip.Prefix{linkLocal, netip.PrefixFrom(netip.IPv6Unspecified(), 128)} {
		a.rule(sources, icmp, f.loadsSaddr(reg), f.isIn(p), returns)
	}
}

// etherIs matches packets of a type (meta protocol).
func etherIs(kind []byte) []expr.Any {
	return []expr.Any{loads(expr.MetaKeyPROTOCOL, reg), equals(reg, kind)}
}
