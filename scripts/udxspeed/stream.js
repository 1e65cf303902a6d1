// One end of an encrypted stream of npm's hyperdht, joined with standard input or output:
//   node stream.js listen HOST:PORT          prints "listening KEY" on standard error, and writes what the first stream brings
//   node stream.js connect HOST:PORT KEY     sends standard input
const DHT = require('hyperdht')

const [role, bootstrap, key] = process.argv.slice(2)
const [host, port] = bootstrap.split(':')
const dht = new DHT({ bootstrap: [{ host, port: Number(port) }], host: '127.0.0.1' })

const fail = (err) => { console.error(err); process.exit(1) }
process.on('unhandledRejection', fail)

if (role === 'listen') listen()
else connect()

async function listen () {
  const server = dht.createServer((socket) => {
    socket.on('error', fail)
    ended(socket)
    socket.pipe(process.stdout)
    socket.end()
  })
  const keyPair = DHT.keyPair()
  await server.listen(keyPair)
  console.error('listening ' + keyPair.publicKey.toString('hex'))
}

function connect () {
  const socket = dht.connect(Buffer.from(key, 'hex'))
  socket.on('error', fail)
  ended(socket)
  socket.resume()
  process.stdin.pipe(socket)
}

// ended ends this program when everything is delivered: the encrypted stream closes before.
function ended (socket) {
  const watch = () => socket.rawStream.on('close', () => process.exit(0))
  if (socket.rawStream) watch()
  else socket.on('open', watch)
}
