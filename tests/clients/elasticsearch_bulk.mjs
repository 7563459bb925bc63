// Sends sessions by @elastic/elasticsearch and prints the outcome, as JSON.
//
//   node elasticsearch_bulk.mjs FOLDER URL USER PASSWORD
import { createRequire } from "node:module";

const [folder, node, username, password] = process.argv.slice(2);
const { Client } = createRequire(`${folder}/`)("@elastic/elasticsearch");
const client = new Client({ node, auth: { username, password }, maxRetries: 0 });

const send = async (datasource) => {
  const dropped = [];
  const { successful, failed } = await client.helpers.bulk({
    datasource,
    onDocument: (session) => ({ index: { _index: "sessions", _id: session.userSessionId } }),
    onDrop: ({ error }) => dropped.push(error.type),
    flushBytes: 1000,
    retries: 0,
  });
  return { successful, failed, dropped };
};
const sessions = Array.from({ length: 25 }, (_, number) => ({
  userSessionId: `js-${number}`, startTime: 1648785600000, userActions: [],
}));
const { tagline } = await client.info();
const outcome = {
  tagline, sent: await send(sessions), again: await send(sessions),
  bad: await send([{ startTime: 1 }]),
};
process.stdout.write(JSON.stringify(outcome));
