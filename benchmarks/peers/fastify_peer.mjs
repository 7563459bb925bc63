// Ingest as Fastify and pg make it, in two processes: a peer of `benchmarks.hot_paths`.
//
// It checks the fields of an event by a JSON schema, and inserts a request's events in one prepared
// statement. It needs no key.
import cluster from 'node:cluster';
import Fastify from 'fastify';
import pg from 'pg';

const INSERT = `
INSERT INTO peer_event (identity, occurred_at, type, device_id, session_id, payload)
SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::jsonb[])
ON CONFLICT (identity) DO NOTHING`;

const text = { type: 'string' };
const event = {
  type: 'object',
  required: ['eid', 'ets', 'mid', 'context', 'edata'],
  properties: {
    eid: text,
    ets: { type: 'number' },
    mid: text,
    context: {
      type: 'object',
      required: ['channel', 'did', 'sid'],
      properties: { channel: text, did: text, sid: text },
    },
    edata: { type: 'object' },
  },
};
const schema = {
  body: {
    type: 'object',
    required: ['events'],
    properties: { events: { type: 'array', items: event } },
  },
  response: {
    200: {
      type: 'object',
      properties: { stored: { type: 'integer' }, duplicate: { type: 'integer' } },
    },
  },
};

function serve() {
  const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL });
  const app = Fastify({ bodyLimit: 8 * 1024 * 1024 });
  app.get('/readyz', async () => (await pool.query('SELECT 1')).rows);
  app.post('/v1/telemetry', { schema }, async (request) => {
    const columns = [[], [], [], [], [], []];
    for (const each of request.body.events) {
      const { did, sid } = each.context;
      const row = [each.mid, new Date(each.ets), each.eid, did, sid, JSON.stringify(each)];
      row.forEach((value, index) => columns[index].push(value));
    }
    const result = await pool.query({ name: 'insert', text: INSERT, values: columns });
    return { stored: result.rowCount, duplicate: request.body.events.length - result.rowCount };
  });
  app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' });
}

if (cluster.isPrimary) {
  cluster.fork();
  cluster.fork();
} else {
  serve();
}
