// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// namesTable leads queries to our resolver. It is its daemon's own: the kernel removes it when the daemon's socket closes,
// however the daemon ends.
const namesTable = "mustang-names"

// trusted is how long our resolver is believed to answer after a beat: a daemon may also hang.
const trusted = 2 * time.Second

// tableOwner makes a table that of the socket (NFT_TABLE_F_OWNER, Linux 5.12).
const tableOwner = 0x2

var (
	engineResolver = []byte{127, 0, 0, 11}
	domain         = port(53)
)

// resolver is the redirection to our resolver in a sandbox.
type resolver struct {
	conn  *nftables.Conn // lasting: the owner
	port  uint16
	alive *nftables.Set
	last  time.Time // beat
}

// names leads queries for the engine's resolver to ours at the port, or no longer if it is 0.
func (n *namespace) names(to uint16) error {
	if n.resolver != nil && n.resolver.port == to {
		return n.beat()
	}
	n.stopNames()
	if to == 0 {
		return nil
	}
	table := &nftables.Table{Name: namesTable, Family: nftables.TableFamilyIPv4}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(n.ns.Fd())),
		nftables.WithSockOptions(func(c *nl.Conn) error { return own(c, table) }))
	if err != nil {
		return fmt.Errorf("lead names to our resolver: %w", err)
	}
	r := &resolver{conn: c, port: to, alive: &nftables.Set{
		Table: table, Name: "alive", KeyType: nftables.TypeInetService, HasTimeout: true,
	}}
	if err := c.AddSet(r.alive, []nftables.SetElement{{Key: domain, Timeout: trusted}}); err != nil {
		return err
	}
	addNames(adder{c, table}, to, r.alive)
	if err := c.Flush(); err != nil {
		_ = c.CloseLasting()
		return fmt.Errorf("lead names to our resolver: %w", err)
	}
	r.last = time.Now()
	n.resolver = r
	return nil
}

// addNames adds the rules that lead to our resolver. Datagrams are not tracked, but rewritten one by one, and so are the
// answers: a client that asks again from the same port, or gets one that another had, must not be led to a resolver that is gone.
func addNames(a adder, to uint16, alive *nftables.Set) {
	exempt := rule(loads(expr.MetaKeyMARK, reg), equals(reg, binaryutil.NativeEndian.PutUint32(Mark)), returns)
	toEngine := func(p byte) []expr.Any {
		return rule(families[0].loadsDaddr(reg), equals(reg, engineResolver), protocolIs(p), loadsDport(reg), in(alive))
	}
	const sport, dport = 0, 2 // offsets in a header
	datagrams := a.hook("datagrams", nftables.ChainTypeFilter, nftables.ChainHookOutput, int32(*nftables.ChainPriorityRaw))
	a.rule(datagrams, exempt)
	a.rule(datagrams, toEngine(unix.IPPROTO_UDP), &expr.Notrack{}, writesPort(dport, port(to)))
	a.rule(datagrams, families[0].loadsSaddr(reg), equals(reg, engineResolver), protocolIs(unix.IPPROTO_UDP),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: sport, Len: 2}, equals(reg, port(to)),
		&expr.Notrack{}, writesPort(sport, domain))
	streams := a.hook("streams", nftables.ChainTypeNAT, nftables.ChainHookOutput, beforeEngine-1)
	a.rule(streams, exempt)
	a.rule(streams, toEngine(unix.IPPROTO_TCP),
		&expr.Immediate{Register: reg, Data: engineResolver}, &expr.Immediate{Register: reg + 1, Data: port(to)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegProtoMin: reg + 1, Specified: true})
}

// writesPort puts a port into a UDP header.
func writesPort(offset uint32, p []byte) []expr.Any {
	const checksum = 6 // its offset
	return []expr.Any{
		&expr.Immediate{Register: reg, Data: p},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	}
}

// own makes a table that belongs to the socket, which our library has no words for.
func own(c *nl.Conn, t *nftables.Table) error {
	attrs, err := nl.MarshalAttributes([]nl.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(t.Name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(tableOwner)},
	})
	if err != nil {
		return err
	}
	// nfgenmsg: family, version, and for the marks of the transaction the subsystem
	of := func(family uint8, resource uint16) []byte {
		return []byte{family, 0, byte(resource >> 8), byte(resource)}
	}
	mark := func(kind int) nl.Message {
		return nl.Message{Header: nl.Header{Type: nl.HeaderType(kind), Flags: nl.Request}, Data: of(0, unix.NFNL_SUBSYS_NFTABLES)}
	}
	_, err = c.SendMessages([]nl.Message{mark(unix.NFNL_MSG_BATCH_BEGIN), {
		Header: nl.Header{
			Type:  nl.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE),
			Flags: nl.Request | nl.Acknowledge | nl.Create | nl.Excl,
		},
		Data: append(of(byte(t.Family), 0), attrs...),
	}, mark(unix.NFNL_MSG_BATCH_END)})
	if err != nil {
		return err
	}
	_, err = c.Receive()
	return err
}

// beat lets queries go to our resolver for another while.
func (n *namespace) beat() error {
	r := n.resolver
	if r == nil {
		return errNoTable
	}
	element := []nftables.SetElement{{Key: domain, Timeout: trusted}}
	// older kernels leave the time of an element that is there as it is
	for _, again := range []bool{time.Since(r.last) < trusted, false} {
		if again {
			if err := r.conn.SetDeleteElements(r.alive, element); err != nil {
				return err
			}
		}
		if err := r.conn.SetAddElements(r.alive, element); err != nil {
			return err
		}
		err := r.conn.Flush()
		if err == nil {
			r.last = time.Now()
			return nil
		}
		if !again || !missing(err) {
			n.stopNames()
			return fmt.Errorf("refresh the way to our resolver: %w", err)
		}
	}
	return nil
}

// stopNames lets the kernel remove the table with its owner.
func (n *namespace) stopNames() {
	if n.resolver != nil {
		_ = n.resolver.conn.CloseLasting()
		n.resolver = nil
	}
}
