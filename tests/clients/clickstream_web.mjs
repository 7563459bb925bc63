// Drives @aws/clickstream-web in a jsdom page and prints what it sent, as JSON.
//
//   node clickstream_web.mjs FOLDER '{"endpoint", "appId", "sendMode", "page", "lose", "cookie"}'
//
// FOLDER holds node_modules. `lose` throws the first answer away, so that the SDK sends once more.
import { createRequire } from "node:module";

const [folder, told] = process.argv.slice(2);
const asked = JSON.parse(told);
const require = createRequire(`${folder}/`);
const { JSDOM, CookieJar, VirtualConsole } = require("jsdom");

const cookieJar = new CookieJar();
if (asked.cookie) cookieJar.setCookieSync(asked.cookie, asked.endpoint);
const page = new JSDOM("<title>Shop</title><a href='#'>here</a>", {
  url: asked.page,
  pretendToBeVisual: true,
  cookieJar,
  virtualConsole: new VirtualConsole(), // refused requests are expected, and told below
});
const { window } = page;
window.performance.getEntriesByType = () => []; // jsdom has none
for (const name of [
  "window", "document", "navigator", "localStorage", "history", "location", "performance",
  "MutationObserver",
])
  Object.defineProperty(globalThis, name, { value: window[name], configurable: true });

// fetch by way of jsdom's XMLHttpRequest, which keeps the rules of CORS as a browser does
const calls = [];
let lose = asked.lose;
globalThis.fetch = (url, options) =>
  new Promise((resolve, reject) => {
    const call = { url: String(url), body: options.body, status: 0 };
    calls.push(call);
    const request = new window.XMLHttpRequest();
    request.open(options.method, url);
    request.withCredentials = options.credentials === "include";
    request.setRequestHeader("Content-Type", options.headers["Content-Type"]);
    request.upload.onprogress = () => {}; // browsers ask beforehand for JSON, jsdom for this
    request.onerror = () => reject(new TypeError("Failed to fetch"));
    request.onload = () => {
      call.status = request.status;
      call.answer = request.responseText;
      if (lose) {
        lose = false;
        reject(new TypeError("Failed to fetch"));
      } else {
        resolve({ ok: request.status >= 200 && request.status < 300, status: request.status });
      }
    };
    request.send(options.body);
  });

console.error = console.warn = console.log = () => {};
const { ClickstreamAnalytics: sdk, SendMode, PageType } = require("@aws/clickstream-web");
sdk.init({
  appId: asked.appId,
  endpoint: asked.endpoint,
  sendMode: SendMode[asked.sendMode],
  sendEventsInterval: 300,
  pageType: PageType.SPA,
});
sdk.setUserId("u-1");
sdk.setUserAttributes({ city: "München", age: 30 });
sdk.setGlobalAttributes({ shop: "日本" });
for (let number = 0; number < 5; number += 1)
  sdk.record({
    name: "question_answered",
    attributes: {
      conversation_id: "bot-web",
      question_id: `q-${number}`,
      question_title: "How was lunch?",
      response: number ? `größer, "${number}" 🙂` : '[{"1": {"text": "One"}}]',
      score: 1.5,
    },
  });
sdk.record({
  name: "add_to_cart",
  items: [{ id: "1", name: "Tee", price: 2.5, mine: "x" }],
  attributes: { "not a name": 1, fine: true },
});
sdk.record({ name: "9 is no name" });
window.history.pushState({}, "", "/next?q=tea");

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const queue = (name) => window.localStorage.getItem(`aws-solution/clickstream-web/${name}`);
let quiet = 0;
for (let waited = 0; quiet < 8 && waited < 200; waited += 1) {
  const before = calls.length;
  await pause(100);
  const waits = calls.some((call) => !call.status);
  const busy = calls.length > before || queue("eventsKey");
  quiet = waits || (busy && !asked.refused) ? 0 : quiet + 1; // what is refused stays in the queue
}
process.stdout.write(
  JSON.stringify({ calls, waiting: queue("eventsKey"), failed: queue("failedEventsKey") }),
  () => process.exit(0), // the SDK's timer would run for ever
);
